"""From the source of a library to masked English paragraphs: what is kept, and what is hidden.

**Kept**: docstrings of modules, classes and functions, and the docstrings that libraries attach to compiled
functions by a call (`add_newdoc`, `add_docstr`). From them every paragraph that reads like English prose: 18 to 120
words, starting with a capital and ending with punctuation, mostly plain words, some of them function words. Left
out are parameter tables, lists, code, doctests, headings, cross-reference sections, licence texts and files
marked as automatically generated.

**Hidden**: mark-up is stripped (it differs between libraries), then one neutral token `[NAME]` stands for
URLs; dotted paths; names written as code (calls, snake_case, CamelCase); and the brands: the
names of the libraries, their makers and their parts, their import aliases and the names of their data types.
Ordinary technical English (array, tensor, index, estimator, token) stays: it is what there is to learn.
"""

import ast
import inspect
import re
from collections.abc import Iterator

MASK = "[NAME]"
MIN_WORDS, MAX_WORDS = 18, 120

_ATTACHING = {"add_newdoc", "add_docstr", "add_doc"}
_SKIPPED_SECTION = re.compile(r"(See Also|References|Methods|Examples?|Citation)\b", re.IGNORECASE)
_UNDERLINE = re.compile(r"\s*([-=~^\"*#])\1{2,}\s*")
_ITEM = re.compile(r"\s*(\.\. |[-*+•] |\d+[.)] |\(\w\) |:\w|@|#|>>>|\.\.\.|\||`{3})")
_UNWANTED = re.compile(
    r">>>|\|.*\||copyright|licen[sc]e|warrant|redistribut|all rights reserved|::$|automatically generated|"
    r"auto-?generated|do not edit|[=-]{3}",
    re.IGNORECASE,
)
_PLAIN_WORD = re.compile(r"[(\"']?[A-Za-z][a-z'’-]*[.,;:!?)\"']*")
_FUNCTION_WORDS = frozenset(
    {"the", "of", "a", "an", "is", "are", "to", "in", "for", "and", "or", "that", "this", "with", "be", "by", "as"}
    | {"it", "on", "from", "if", "can", "which", "not", "at", "when", "will"}
)

_ROLE = re.compile(r":[a-z]+(?::[a-z]+)*:`([^`<]*)(?:<[^`]*>)?`")
_LINK = re.compile(r"\[`?([^`\]]*)`?\]\([^)]*\)|`([^`<]*)<[^`>]*>`_{1,2}|\[`([^`]*)`\]")
_CITATION = re.compile(r"\s*\[[\w-]{1,20}\]_")
_BRANDS = (
    r"num-?py|np|sci-?py|scikit-\w+|scikits?|sklearn|pandas|pd|pydata|py-?torch|lib-?torch|torch\w*|aten|"
    r"transformers|hugging ?face|hf|🤗|meta ai|facebook|series|data ?frames?|nd-?arrays?|ufuncs?|"
    r"dynamo|inductor|stylers?|gh"
)
_MASKED = [
    re.compile(r"<?\b(?:\w+://|www\.|doi:)[^\s>]*>?", re.IGNORECASE),
    re.compile(r"~?\b\w+(?:\.\w+)+\b(?:\(\))?|\b\w+\(\)"),
    re.compile(r"\b\w*[^\W_]_\w*|\b_+\w+"),
    re.compile(r"\b[A-Z]+[a-z0-9]+[A-Z]\w*|\b[a-z]+[A-Z]\w*|\b[A-Z]{2,}[a-z]{2,}\w*"),
    re.compile(rf"(?<!\w)(?:{_BRANDS})(?!\w)", re.IGNORECASE),
]
_ABBREVIATION = re.compile(r"\b(?:i\.e|e\.g|a\.k\.a|w\.r\.t|vs|U\.S)\b\.?|\b\d+\.\d+\b")
_RUN = re.compile(r"\[NAME\](?:(?:[\s,./]|and |or )*\[NAME\])+")


def docstrings(source: str) -> Iterator[str]:
    """Every docstring in a Python file, attached ones included, in the order of the file.

    Raises:
        SyntaxError: the file is not Python of this version.
    """
    # Statements only: walking every expression of these files costs more than parsing them.
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            if (doc := ast.get_docstring(node)) is not None:
                yield doc
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _attached(node.value)
        blocks = [getattr(node, name, []) for name in ("body", "handlers", "orelse", "finalbody")]
        waiting.extend(reversed([child for block in blocks for child in block]))


def _attached(call: ast.Call) -> Iterator[str]:
    """The docstrings among the arguments of `add_newdoc(...)` and its like."""
    if (getattr(call.func, "id", None) or getattr(call.func, "attr", "")) in _ATTACHING:
        for part in ast.walk(call):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and "\n" in part.value:
                yield inspect.cleandoc(part.value)


def prose(doc: str) -> Iterator[str]:
    """The paragraphs of a docstring (already without common indentation) that read like English."""
    section = ""
    for block in re.split(r"\n[ \t]*\n", doc):
        lines = block.split("\n")
        if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1]):
            section, lines = lines[0].strip(), lines[2:]
        if _SKIPPED_SECTION.match(section):
            continue
        for run in _same_indentation(lines):
            paragraph = " ".join(line.strip() for line in run)
            if not _ITEM.match(run[0]) and _reads_like_english(paragraph):
                yield paragraph


def _same_indentation(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines indented alike: a parameter's name and its description fall apart."""
    run: list[str] = []
    depth = -1
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if indent != depth and run:
            yield run
            run = []
        depth = indent
        run.append(line)
    if run:
        yield run


def _reads_like_english(paragraph: str) -> bool:
    words = paragraph.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or not paragraph[0].isupper() or paragraph[-1] not in ".:!?)":
        return False
    if _UNWANTED.search(paragraph):
        return False
    plain = sum(bool(_PLAIN_WORD.fullmatch(word)) for word in words)
    return plain >= 0.65 * len(words) and len(_FUNCTION_WORDS & {word.lower() for word in words}) >= 3


def mask(paragraph: str) -> str:
    """The paragraph without mark-up, names and brands hidden behind `MASK`."""
    text = _LINK.sub(lambda m: next((g for g in m.groups() if g), MASK), _ROLE.sub(_last_part, paragraph))
    text = _CITATION.sub("", text).replace("`", "").replace("*", "")
    # Dots inside abbreviations and numbers would look like dotted paths.
    text = _ABBREVIATION.sub(lambda m: m.group().replace(".", "\0"), text)
    for pattern in _MASKED:
        text = pattern.sub(MASK, text)
    text = _RUN.sub(MASK, text.replace("\0", "."))
    return re.sub(r"\s+", " ", text).strip()


def _last_part(match: re.Match[str]) -> str:
    """`numpy.linalg.norm` out of a reference role: always a name, so always masked."""
    return MASK if re.search(r"[.~]", match.group(1)) else match.group(1).strip()
