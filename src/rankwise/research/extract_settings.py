"""Settings that a text states: learning rate, batch size, epochs, rank, budget, warm-up, seeds, model, tasks, arms."""

import re
from dataclasses import dataclass
from functools import lru_cache

from rankwise.research.extract_names import devices, methods, metrics, models, stem, tasks
from rankwise.research.wording import clauses, plain


@dataclass(frozen=True)
class Settings:
    """What a text says about how things are run. None or empty: it does not say.

    `budgets` are total ranks given as numbers; `rank_expressions` are totals given as a product, such as
    `number of LoRA matrices x 8`: (what is counted, factor).
    """

    learning_rates: tuple[float, ...] = ()
    batch_size: int | None = None
    epochs: float | None = None
    rank: int | None = None
    budgets: tuple[int, ...] = ()
    rank_expressions: tuple[tuple[str, int], ...] = ()
    warmup_epochs: float | None = None
    warmup_steps: int | None = None
    beta: float | None = None
    alpha: float | None = None
    dropout: float | None = None
    seeds: int | None = None
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    penalties: tuple[float, ...] = ()

    @property
    def learning_rate(self) -> float | None:
        """The one learning rate; None if there is none or there are several."""
        return self.learning_rates[0] if len(set(self.learning_rates)) == 1 else None


_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "half an": 0.5, "a single": 1.0, "ten": 10.0}
_COUNT = r"(\d{1,4}|" + "|".join(_WORDS) + ")"


@lru_cache(maxsize=256)
def settings(text: str) -> Settings:
    """Settings of an experimental setup; where a text says a thing twice, the first time counts."""
    text = plain(text)
    batch, rank = _first(text, rf"\bbatch(?:[ -]size)?\s*(?:of|=|:)?\s*{_NUMBER}"), _rank(text)
    steps = _first(text, r"\bwarm-?up[^.\n;]{0,30}?(\d[\d,]{1,9})\s*(?:optimi[sz]er |training )?steps", commas=True)
    named = methods(text)
    return Settings(
        learning_rates=_learning_rates(text),
        batch_size=int(batch) if batch else None,
        epochs=_epochs(text),
        rank=rank,
        budgets=_budgets(text),
        rank_expressions=_expressions(text),
        warmup_epochs=_words(text, rf"\bwarm-?up[^.,\n;]{{0,30}}?\b{_COUNT} epochs?\b"),
        warmup_steps=int(steps) if steps else None,
        beta=_first(text, rf"(?:β|\bbeta)\s*(?:=|of)\s*{_NUMBER}"),
        alpha=_first(text, rf"(?:\blora[_ ])?\balpha\s*(?:=|of|:)?\s*{_NUMBER}"),
        dropout=_first(text, rf"\bdropout\s*(?:=|of|:)?\s*{_NUMBER}"),
        seeds=_seeds(text),
        models=models(text),
        tasks=tasks(text),
        metrics=metrics(_part(text, r"metrics?") or text),
        devices=devices(text),
        arms=tuple(dict.fromkeys(one.name for one in named)),
        baselines=_baselines(text),
        penalties=_penalties(text),
    )


def _first(text: str, pattern: str, *, commas: bool = False) -> float | None:
    match = re.search(pattern, text, re.I)
    if match is None:
        return None
    try:
        return float(match[1].replace(",", "") if commas else match[1])
    except (ValueError, OverflowError):
        return None


def _words(text: str, pattern: str) -> float | None:
    match = re.search(pattern, text, re.I)
    return None if match is None else _WORDS.get(match[1].lower()) or float(match[1])


def _learning_rates(text: str) -> tuple[float, ...]:
    found = []
    pattern = (
        rf"(?:\blr|\blearning[ _-]rates?|AdamW(?: lr)?)\s*(?:of|=|:|∈|in|among|"
        rf"from)?\s*\{{?\s*({_NUMBER}(?:\s*(?:,|or|and|-|to)\s*{_NUMBER})*)"
    )
    for match in re.finditer(pattern, text, re.I):
        values = [float(one) for one in re.findall(_NUMBER, match[1], re.I)]
        found += [value for value in values if 0 < value < 1]
    return tuple(dict.fromkeys(found))


def _epochs(text: str) -> float | None:
    for match in re.finditer(rf"\b{_COUNT}\s+epochs?\b", text, re.I):
        if not re.search(r"warm-?up[^.\n;]{0,25}$", text[max(0, match.start() - 30) : match.start()], re.I):
            return _WORDS.get(match[1].lower()) or float(match[1])
    return None


def _rank(text: str) -> int | None:
    patterns = (
        r"\b(?:r|rank)\s*(?:=|of)\s*(\d{1,4})\b",
        r"\bLoRA-(\d{1,3})\b",
        r"\b(?:of|with|uniform|at) rank[ -](\d{1,4})\b",
    )
    found = next((value for pattern in patterns if (value := _first(text, pattern))), None)
    return int(found) if found else None


def _budgets(text: str) -> tuple[int, ...]:
    patterns = (
        r"\bR_?total\b[^\n;=]{0,20}?(\d{2,5})\b",
        r"\b(?:total|global|rank)[ _-](?:rank[ _-])?budget\b[^.\n;]{0,30}?(\d{2,6})\b(?!\s*%)",
        r"\b(\d{2,6}) (?:total )?ranks? in (?:all|total)\b",
        r"\btotal[ _]rank\s*(?:of|=|:)\s*(\d{2,6})\b",
    )
    found = [int(match[1]) for pattern in patterns for match in re.finditer(pattern, text, re.I)]
    return tuple(dict.fromkeys(found))


_THINGS = (
    r"(?:(?:the )?number of )?((?:adapted |target(?:ed)? |LoRA ){0,3}(?:matrices|modules|layers)|"
    r"num_(?:layers|matrices|modules))"
)


def _expressions(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for match in re.finditer(rf"{_THINGS}\s*(?:x|×|\*|times)\s*(\d{{1,3}})\b", text, re.I):
        counted = "layers" if "layer" in match[1].lower() else "matrices"
        found.append((counted, int(match[2])))
    return tuple(dict.fromkeys(found))


def _seeds(text: str) -> int | None:
    if match := re.search(rf"\b{_COUNT}\s+(?:\w+\s+){{0,2}}seeds?\b", text, re.I):
        return int(_WORDS.get(match[1].lower()) or float(match[1]))
    if match := re.search(r"\bseeds?\s*(?:=|:|in)?\s*[\[{(]?\s*(\d+(?:\s*,\s*\d+)+)", text, re.I):
        return len(match[1].split(","))
    if match := re.search(r"\bseeds?\s*(\d+)\s*(?:-|to)\s*(\d+)", text, re.I):
        return int(match[2]) - int(match[1]) + 1
    return 1 if re.search(r"\b(?:same|one|single|fixed) (?:random )?seed\b", text, re.I) else None


def _part(text: str, label: str) -> str:
    """What follows a label such as `Metrics:` up to the end of its line."""
    match = re.search(rf"(?:^|\n)\W{{0,3}}{label}\b\s*:?([^\n]*)", text, re.I)
    return match[1] if match else ""


def _baselines(text: str) -> tuple[str, ...]:
    """Methods of the lines that list baselines, up to where the proposal is named."""
    found: dict[str, str] = {}
    for match in re.finditer(
        r"(?:^|\n|\. )\W{0,3}(?:arms?|baselines?|controls?|comparisons?|compared with|comparative methods?)\b([^\n]*)",
        text,
        re.I,
    ):
        listed = re.split(r"\bproposed\b", match[1], maxsplit=1, flags=re.I)[0]
        for one in methods(listed):
            found.setdefault(stem(one.name), one.name)
        if re.search(r"\brandom", listed, re.I):
            found.setdefault("random", "random")
    return tuple(found.values())


def _penalties(text: str) -> tuple[float, ...]:
    """Values of penalty weights: `λ ∈ {0, 0.1}`."""
    values: list[float] = []
    for clause in clauses(text):
        for match in re.finditer(r"λ\w{0,6}\s*(?:∈|in|=)\s*\{([^}]{1,80})\}", clause):
            values += [float(one) for one in re.findall(_NUMBER, match[1], re.I)]
    return tuple(values)
