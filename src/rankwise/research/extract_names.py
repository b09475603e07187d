"""Names in text: methods, base models, tasks, metrics, devices."""

import re
from dataclasses import dataclass
from functools import lru_cache

from rankwise.research.wording import plain

_ADJECTIVES = r"(?i:(?:vanilla|uniform|ordinary|standard|plain|static|full|unmerged|merged)[ -])?"
_METHOD = re.compile(
    rf"\b{_ADJECTIVES}(?:[A-Za-z]{{1,20}}-){{0,3}}[A-Za-z]{{0,20}}LoRA(?:-\d+)?\b"
    r"|\bfull (?:fine-?tun(?:e|ing)|FT)\b|\bFull FT\b|\bfine-?tuning all\b"
    r"|\b[A-Z]\w{0,8}[a-z]RA\b"
    r"|\bBitFit\b|\bIA3\b|\bSHiRA\b|\bPiSSA\b|\b(?:Houlsby|Pfeiffer) adapters?\b|\bprefix tuning\b"
    r"|\brandom (?:rank )?allocation\b|\bheuristic allocation\b"
)
_PART = re.compile(
    r"-(?:style|like|based|level)\b|[ -](?:layers?|modules?|adapters?|matri(?:x|ces)|weights?|gradients?|blocks?|"
    r"branch|"
    r"updates?|ranks?|parameters?|parametri[sz]ation|columns?|factors?)\b",
    re.I,
)
"""After a name: it is not the method that is meant but a part of it, or something like it."""
_PLAIN_WORDS = ("vanilla", "uniform", "ordinary", "standard", "plain", "unmerged", "merged", "static", "full")

TASKS = {
    "glue/mnli": r"\bMNLI\b", "glue/sst2": r"\bSST-?2\b", "glue/rte": r"\bRTE\b", "glue/cola": r"\bCoLA\b",
    "glue/mrpc": r"\bMRPC\b", "glue/stsb": r"\bSTS-?B\b", "glue/qnli": r"\bQNLI\b", "glue/qqp": r"\bQQP\b",
    "docstrings": r"\bdocstrings\b",
}  # fmt: skip
"""Our name of a task to a pattern of what authors write."""

_MODELS = {
    "microsoft/deberta-v3-base": r"\bDeBERTa-?\s?v3-base\b",
    "bert-base-uncased": r"(?<![A-Za-z])BERT[- ]?base(?:-uncased)?\b",
    "roberta-base": r"\bRoBERTa-base\b",
    "minilm": r"\bMiniLM\b",
}
_METRICS = {
    "matthews_correlation": r"\bMatthew(?:'?s'?)?(?:['\s]+corr\w*\.?)?|\bMCC\b|\bmatthews_corr\w*",
    "f1": r"\bF1\b",
    "pearson": r"\bPearson\b",
    "spearman": r"\bSpearman\b",
    "accuracy": r"\baccuracy\b",
    "train_seconds": r"\b(?:wall-?(?:clock|time)|training (?:wall-?)?time)\b",
    "inference_flops": r"\bFLOPs?\b",
}
_DEVICES = re.compile(r"\b(?:[AHVBTL]\d{2,3}0?|RTX ?\d{4}|GH200|TPU ?v\d)\b")


@dataclass(frozen=True)
class Mention:
    """A method's name where it stands in a text."""

    name: str
    start: int
    end: int


@lru_cache(maxsize=1024)
def methods(text: str, *also: str) -> tuple[Mention, ...]:
    """Every method that a text names, in order, spelled as there; `also` are further names to look for."""
    found = [Mention(match[0].strip(), match.start(), match.end()) for match in _METHOD.finditer(text)]
    for name in filter(None, also):
        pattern = rf"(?<![\w-]){re.escape(name)}(?![\w])"
        own = (Mention(name, match.start(), match.end()) for match in re.finditer(pattern, text))
        found += [one for one in own if not any(one.start < other.end and other.start < one.end for other in found)]
    return tuple(one for one in sorted(found, key=lambda one: one.start) if not _PART.match(text, one.end))


def stem(name: str) -> str:
    """A method's name without words that do not change it: `vanilla LoRA` and `LoRA-8` are `lora`."""
    if re.fullmatch(r"full (?:fine-?tun\w+|ft)|fine-?tuning all", name.strip(), re.I):
        return "full"
    name = re.sub(r"\s+(?:rank )?allocation$", "", name, flags=re.I)
    words = [word for word in re.split(r"[\s]+", plain(name).lower()) if word not in _PLAIN_WORDS]
    return re.sub(r"-\d+$", "", " ".join(words) or name.lower())


def proposed_name(title: str, method: str) -> str:
    """What a hypothesis calls its method: the short form in brackets, else the first method named; else empty."""
    head = plain(f"{title}\n{method}")[:600]
    for match in re.finditer(r"\(([A-Za-z][A-Za-z0-9-]{2,24})\)", head):
        if re.search(r"[A-Z]", match[1]) and not match[1].isupper():
            return match[1]
    if (found := methods(head)) and not title.strip():
        return found[0].name
    return plain(title).strip() or (found[0].name if found else "")


def models(text: str) -> tuple[str, ...]:
    """Base models of our table that a text names, in its order."""
    return _in_order(text, _MODELS)


def tasks(text: str) -> tuple[str, ...]:
    """Tasks, by our names, in the text's order."""
    return _in_order(text, TASKS)


def metrics(text: str) -> tuple[str, ...]:
    """Metrics and costs, by our names, in the text's order."""
    return _in_order(text, _METRICS)


def devices(text: str) -> tuple[str, ...]:
    """Accelerators, as written, each once."""
    return tuple(dict.fromkeys(_DEVICES.findall(text)))


def _in_order(text: str, table: dict[str, str]) -> tuple[str, ...]:
    text = plain(text)
    first = {name: match.start() for name, pattern in table.items() if (match := re.search(pattern, text, re.I))}
    return tuple(sorted(first, key=lambda name: first[name]))
