"""From what a hypothesis calls a method or a model to what is registered here.

A name is looked up as it stands, then without what surrounds it ("uniform LoRA with rank 8", "LoRA-8, all layers",
"Rank-And-Depth Adaptive LoRA (RAD-LoRA)"): first the short form in brackets, then what is left without words that
only qualify. `DoRA`, `LoRA-FA` and "noise-aware LoRA" are other methods than `LoRA`. What is found nowhere is an error
with the nearest name; a person may then say what is meant, or bring a plug-in.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from rankwise.errors import UnknownNameError
from rankwise.experiments.schema import method_registry
from rankwise.registry import did_you_mean

Role: TypeAlias = Literal["proposed", "comparative", "control"]

ALIASES: Mapping[str, str] = {
    "uniform": "lora",
    "uniformlora": "lora",
    "uniformbudget": "lora",
    "uniformallocation": "lora",
    "vanillalora": "lora",
    "standardlora": "lora",
    "fullfinetune": "full",
    "fullfinetuning": "full",
    "fullft": "full",
    "finetuning": "full",
    "fullmodelfinetuning": "full",
    "adaptivebudgetlora": "adalora",
    "peftadalora": "peft_adalora",
    "gradientnorm": "glora",
    "gradientnorms": "glora",
    "gradientnormawarerankallocation": "glora",
    "gradientguidedallocation": "glora",
    "gatedlora": "galora",
    "conditionalgatedlora": "cogalora",
    "rankanddepthadaptivelora": "radlora",
    "randomallocation": "random",
    "randomranks": "random",
    "randomrankallocation": "random",
    "randompruning": "random",
    "randomsingularvaluepruning": "random",
    "randomsingularvalue": "random",
    "gradientnormpruning": "glora",
    "fixedheuristic": "heuristic",
    "handmade": "heuristic",
    "truncation": "truncate",
    "truncatedlora": "truncate",
    "trainthentruncate": "truncate",
    "activationsvd": "eva",
    "evalora": "eva",
}
"""Other words for registered methods, letters and digits only."""

PEERS: Mapping[str, str] = {"adalora": "peft_adalora"}
"""What stands for a published method where it is compared with: the implementation that its users have."""

ABLATIONS: Mapping[tuple[str, str], str] = {("radlora", "rank"): "cogalora"}
"""Method and part to what it is without that part: RAD-LoRA without its rank head only opens and closes gates."""

MODELS: Mapping[str, str] = {
    "debertav3base": "microsoft/deberta-v3-base",
    "debertav3small": "microsoft/deberta-v3-small",
    "debertav3large": "microsoft/deberta-v3-large",
    "bertbaseuncased": "google-bert/bert-base-uncased",
    "bertbase": "google-bert/bert-base-uncased",
    "bertlargeuncased": "google-bert/bert-large-uncased",
    "robertabase": "FacebookAI/roberta-base",
    "robertalarge": "FacebookAI/roberta-large",
    "distilbertbaseuncased": "distilbert/distilbert-base-uncased",
    "minilm": "minilm",
    "minilml6": "minilm",
    "allminilml6v2": "minilm",
}
"""Base models as papers call them, and their names on the hub; `minilm` is carried by a package."""

_WORDS = (
    "a all an baseline baselines budget classic constant default fixed full-rank global layers matrix "
    "method model ordinary original our per plain proposed rank ranks regular same simple standard static "
    "the uniform uniform-rank unmodified usual vanilla variant with "
)
QUALIFIERS = frozenset(_WORDS.split())
"""Words beside a method's name that do not make it another method."""

_VARIANT = re.compile(r"\b(?:without|w/o|minus)\b|λ|\blambda\b|\btoo (?:high|low|large|small|strong)\b", re.IGNORECASE)
_BRACKETS = re.compile(r"\(([^()]*)\)")
_NUMBERED = re.compile(r"^(?P<name>[A-Za-z_-]*?[A-Za-z])[-_ ]?(?:r|rank)?[-_ ]?=?\d+$")
_END = re.compile(r"[,;:]|\s[-–—]\s|\bwith\b|\bat\b|\bof rank\b|\brank r\b|\bon\b|\bin\b", re.IGNORECASE)


def key_of(text: str) -> str:
    """Letters, digits and + in lower case: `GLUE MNLI` and `glue/mnli` are the same, `LoRA` and `LoRA+` are not."""
    return re.sub(r"[^a-z0-9+]", "", text.lower())


def method_named(said: str, extra: Mapping[str, str] | None = None) -> str | None:
    """The registered method that is meant, or None.

    Args:
        said: a method's name as a text has it.
        extra: what a person said about names: theirs to ours.
    """
    own = {key_of(name): name for name in method_registry()}
    known = {**ALIASES, **own, **{key_of(name): ours for name, ours in (extra or {}).items()}}
    for candidate in _candidates(said):
        found = known.get(key_of(candidate)) or _numbered(candidate, known)
        if found:
            return found
    return None


def method_of(said: str, role: Role = "proposed", extra: Mapping[str, str] | None = None) -> str:
    """The registered method that is meant; of a published one that is compared with, its users' implementation.

    Raises:
        UnknownNameError: none is; the message has the nearest and says what can be done.
    """
    found = method_named(said, extra)
    if found is None:
        known = [*method_registry(), *(extra or {})]
        close = did_you_mean(_short(said), known) or "."
        raise UnknownNameError(
            f"no method is registered for '{said}'{close} Known: {', '.join(known)}. Say which one is meant with "
            f"--map '{said}=NAME', or name a file that registers it with --plugin"
        )
    named = extra is not None and key_of(said) in {key_of(name) for name in extra}
    return found if role == "proposed" or named else PEERS.get(found, found)


def ablation_of(said: str) -> tuple[str, str | None] | None:
    """Of a variant of a registered method (`RAD-LoRA without rank branch`, `CoGaLoRA λ too high`): that method, and the
    registered one that the variant is, if one is. None if the words are no variant of a registered method.
    """
    words = said.split()
    if not _VARIANT.search(said):
        return None
    for size in range(len(words) - 1, 0, -1):
        method = method_named(" ".join(words[:size]))
        rest = " ".join(words[size:]).lower()
        if method is not None:
            found = next((ours for (of, part), ours in ABLATIONS.items() if of == method and part in rest), None)
            return method, found if re.match(r"without|w/o|minus", rest) else None
    return None


def model_of(said: str) -> str:
    """A base model's name as `rankwise` takes it: the hub's for those in `MODELS`, otherwise the words as written."""
    plain = _BRACKETS.sub(" ", said).strip()
    for candidate in (plain, plain.rpartition("/")[2], *plain.split()):
        if found := MODELS.get(key_of(candidate)):
            return found
    return plain or said.strip()


def short_name(said: str, taken: Iterable[str] = ()) -> str:
    """A name for an arm: letters, digits, dots, dashes and underscores, beginning with a letter, not among `taken`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", _short(said)).strip("-._")[:60]
    name = name if name[:1].isalpha() else f"arm-{name}".rstrip("-")
    found, turn, used = name, 2, {each.lower() for each in taken}
    while found.lower() in used:
        found, turn = f"{name}-{turn}", turn + 1
    return found


def _short(said: str) -> str:
    """The short form in brackets, if there is one that looks like a name; else the words before the first stop."""
    for inside in reversed(_BRACKETS.findall(said)):
        if re.fullmatch(r"[A-Za-z][\w+.-]{1,30}", inside.strip()):
            return str(inside).strip()
    return _END.split(_BRACKETS.sub(" ", said).strip(), maxsplit=1)[0].strip() or said.strip()


def _candidates(said: str) -> Sequence[str]:
    """Whole, in brackets, without brackets, up to a stop; then single words, if the others only qualify them."""
    text = said.strip()
    bare = _BRACKETS.sub(" ", text).strip()
    stem = _END.split(bare, maxsplit=1)[0].strip()
    words = re.findall(r"[\w+-]+", stem)
    names = [word for word in words if word.lower() not in QUALIFIERS and not word.isdecimal()]
    inside = [each for each in _BRACKETS.findall(text) if key_of(each) != "lora"]
    return list(dict.fromkeys([text, *inside, bare, stem, *([" ".join(names)] if names else words)]))


def _numbered(candidate: str, known: Mapping[str, str]) -> str | None:
    """`LoRA-8`, `LoRA r=8`: the method with a rank behind it."""
    match = _NUMBERED.match(candidate.strip())
    return known.get(key_of(match["name"])) if match else None
