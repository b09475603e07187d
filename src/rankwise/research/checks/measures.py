"""Rules on metrics, tuning, baselines and names."""

import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect, Paper
from rankwise.research.checks.facts import TAKEN_NAMES, task_words
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.extract import stem
from rankwise.research.extract_names import methods
from rankwise.research.wording import plain, short, states
from rankwise.tasks.glue import SPECS
from rankwise.tasks.metrics import METRICS, canonical_metric

FULL_TUNING_RATE = 5e-5
"""Largest of the learning rates that BERT was fine-tuned with (Devlin et al. 2019); LoRA takes ten times as much."""


@rule("task_metric", "hypothesis", 19)
def own_metrics(subject: Subject) -> Iterator[Defect]:
    """A task is measured by its own metric."""
    tasks = [task for task in subject.settings.tasks if task.removeprefix("glue/") in SPECS]
    for name in subject.settings.metrics:
        if name not in METRICS or not tasks or name == "accuracy":
            continue
        if not any(name in SPECS[task.removeprefix("glue/")].metrics for task in tasks):
            own = "; ".join(
                f"{task_words(task)}: {', '.join(SPECS[task.removeprefix('glue/')].metrics)}" for task in tasks
            )
            yield defect(
                f"{name} is the metric of none of these tasks ({own})", 19, where="experimental_setup", level="warning"
            )


_CONDITION = r"[≤≥<>%]|\b(?:under|at most|at least|no more than|within|subject to|constrain\w+|budget|FLOPs?|while)\b"


@rule("metric_exists", "hypothesis", 21, 64)
def primary_metric(subject: Subject) -> Iterator[Defect]:
    """There is one primary metric, and it is a metric."""
    said = subject.hypothesis.primary_metric.strip() if subject.hypothesis else ""
    if not said:
        yield defect(
            "no primary metric: nothing says beforehand which result decides",
            21,
            where="primary_metric",
            level="warning",
        )
        return
    words = re.sub(r"[-,()/]", " ", plain(said)).split()
    known = any(canonical_metric(word) for word in words) or re.search(r"matthews|pearson|spearman", said, re.I)
    if not known:
        text = f"'{short(said)}' is no metric that is known; allowed: {', '.join(METRICS)}"
        yield defect(text, 64, where="primary_metric")
    elif re.search(_CONDITION, said, re.I):
        text = (
            f"'{short(said)}' is a metric with a condition: give the metric, and the condition as a claim with a bound"
        )
        yield defect(text, 64, where="primary_metric", level="warning")


@rule("tuning_parity", "hypothesis", 20)
def tuned_alike(subject: Subject) -> Iterator[Defect]:
    """Arms are tuned alike; one untuned setting for all favours the one it suits."""
    same = states(
        subject.setup,
        r"\bidentical to\b|\bsame (?:hyper-?param\w*|learning rate|settings|lr)\b|\bidentical (?:hyper-?param\w*|"
        r"settings)",
    )
    tuned = re.search(
        r"\btun(?:ed|ing)\b|\bsearch\w*|\bgrid\b|\bsweep\b|\btrials?\b|\bbest of\b|\bselected (?:on|from)\b",
        subject.setup,
        re.I,
    )
    rate = subject.settings.learning_rate
    if same and not tuned:
        shown = f" ({rate:g})" if rate else ""
        text = (
            f"every arm trains with one learning rate{shown} that nobody tuned, although methods differ in the rate "
            "and length they need"
        )
        yield defect(text, 20, where="experimental_setup", level="warning")


@rule("tuning_parity", "hypothesis", 61)
def rate_for_adapters(subject: Subject) -> Iterator[Defect]:
    """Adapters train with rates for adapters."""
    rates = subject.settings.learning_rates
    adapters = re.search(r"\bLoRA\b|\badapters?\b", subject.setup, re.I)
    if rates and max(rates) <= FULL_TUNING_RATE and adapters:
        text = (
            f"learning rate {max(rates):g} is one for fine-tuning all weights (2e-5 to {FULL_TUNING_RATE:g}); adapters "
            "are usually "
            "trained with 1e-4 to 1e-3, so every adapter arm is held back and full fine-tuning is not"
        )
        yield defect(text, 61, where="experimental_setup", level="warning")


@rule("claim_coverage", "hypothesis", 32, 81)
def reference_arms(subject: Subject) -> Iterator[Defect]:
    """Whatever a result is compared with is among the arms that are run, plain LoRA first of all."""
    if subject.hypothesis is None or not subject.predictions:
        return
    own = stem(subject.name)
    said = (*subject.settings.baselines, *(one.name for one in methods(subject.setup)))
    arms = {own, *(stem(name) for name in said or subject.settings.arms)}
    wanted = {name: stem(name) for one in subject.predictions for name in (one.reference, one.subject) if name}
    like = re.findall(r"\b(\w*[a-z]RA)-(?:style|like)\b", subject.expected)
    wanted |= {name: stem(name) for name in like}
    absent = sorted(name for name, base in wanted.items() if not _runs(base, arms, own, subject.setup))
    if absent:
        text = f"the expected result speaks of {listed(absent)}, which no arm runs (arms: {listed(sorted(arms))})"
        yield defect(text, 81, where="experimental_setup")
    gain = any(one.form in ("change", "order") and one.quantity == "accuracy" for one in subject.predictions)
    if gain and "lora" not in arms:
        yield defect("a gain is expected and no arm is plain LoRA at the same budget", 32, where="experimental_setup")


def _runs(base: str, arms: set[str], own: str, setup: str) -> bool:
    """Is a method, or a variant of the proposal, among the arms, or named in the setup in other words?"""
    words = set(re.findall(r"[a-z0-9-]+", base))
    variant = bool(own) and base.startswith(own)
    return base == "lora" or bool(words & arms) or variant or base.replace("_", " ") in setup.lower()


_MECHANISMS = {
    "weights that a network generates": (
        r"hyper-?network|HyperLoRA|hypermodel",
        r"hyper-?network|hypermodel|hyper-?tuning",
    ),
    "a rank budget that is allocated": (
        r"rank (?:budget )?alloc|allocat\w+ (?:the )?rank",
        r"budget allocation|importance-aware rank",
    ),
    "routing between adapters": (r"\brouters?\b|\brouting\b", r"adapter routing|routing function|task[-–]skill"),
}


@rule("claim_coverage", "hypothesis", 81)
def uncited(subject: Subject) -> Iterator[Defect]:
    """Papers of the list that have the same mechanism are named."""
    said = plain("\n".join([subject.words, subject.hypothesis.changes if subject.hypothesis else ""]))
    for mechanism, (ours, theirs) in _MECHANISMS.items():
        if not re.search(ours, subject.method, re.I):
            continue
        for paper in subject.papers:
            text = plain(" ".join([paper.title, *(one.text[:1000] for one in paper.contributions)]))
            if re.search(theirs, text, re.I) and not _named(paper, said):
                found = f'{paper.id} ("{short(paper.title)}") has {mechanism} as well and is not mentioned'
                yield defect(found, 81, where="open_problems", level="warning")


_GENERIC = {
    "lora",
    "llm",
    "llms",
    "peft",
    "nlp",
    "gpt",
    "bert",
    "plm",
    "plms",
    "svd",
    "mlp",
    "full ft",
    "nlu",
    "bitfit",
}
"""Names that are no paper's own."""


def _named(paper: Paper, said: str) -> bool:
    """Is a paper named, by its title, its short name or a method that it brings?"""
    title, brought = plain(paper.title).strip(), plain(" ".join(one.text for one in paper.contributions))[:1500]
    head = re.split(r":| for | via | with | through ", title, maxsplit=1)[0].strip()
    names = {head} if 0 < len(head.split()) <= 4 else set()
    names |= {one.name for one in methods(brought[:600])[:2]}
    names |= set(re.findall(r"\(([A-Z][A-Za-z0-9-]{1,12})\)", brought))
    names |= set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", title))
    own = (name for name in names if stem(name) not in _GENERIC)
    return title.lower() in said.lower() or any(re.search(rf"\b{re.escape(name)}\b", said, re.I) for name in own)


@rule("name_taken", "hypothesis", 22)
def new_name(subject: Subject) -> Iterator[Defect]:
    """A new method has a name of its own."""
    if subject.hypothesis is None:
        return
    name, head = subject.name, plain(f"{subject.hypothesis.title}\n{subject.hypothesis.method[:600]}")
    if name not in plain(subject.hypothesis.title) and f"({name})" not in head:
        return  # read out of a sentence: it may be about another method
    taken = TAKEN_NAMES.get(re.sub(r"[^a-z0-9]", "", name.lower()))
    titled = (
        next((paper for paper in subject.papers if re.match(rf"{re.escape(name)}\s*:", plain(paper.title), re.I)), None)
        if name
        else None
    )
    if taken or titled is not None:
        what = taken or f'"{short(titled.title)}"' if titled else taken
        yield defect(f"the name {name} is taken: {what}", 22, where="title", level="warning")
