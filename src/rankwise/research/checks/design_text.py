"""Rules on a record's design, which is text: resources, search ranges, arms, devices, and how the answer is written."""

import ast
import itertools
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.facts import task_words
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.datasets import wrong_identity
from rankwise.research.extract import settings
from rankwise.research.extract_names import devices, methods, stem, tasks
from rankwise.research.wording import plain, short

_RESOURCE = re.compile(r"\bid\s*[=:]\s*['\"]([\w.-]+/[\w.-]+)['\"]")
_RANGE = re.compile(r"^\s*[\d.]+(?:e[+-]?\d+)?\s*-\s*[\d.]+(?:e[+-]?\d+)?\s*$", re.I)


def _text(subject: Subject) -> str:
    return subject.imported.design_text.replace("\\n", "\n") if subject.imported else ""


def _list(text: str, name: str) -> str:
    """The words of `name=[…]`; empty if there is none."""
    match = re.search(rf"\b{name}['\"]?\s*[=:]\s*\[([^\]]{{0,2000}})\]", text)
    return match[1] if match else ""


@rule("dataset_identity", "record", 47)
def datasets(subject: Subject) -> Iterator[Defect]:
    """A dataset on the hub is the one that is meant: training rows and columns."""
    text = _text(subject)
    meant = tasks(_list(text, "datasets_to_use")) or subject.settings.tasks
    starts = [match.start() for match in _RESOURCE.finditer(text)]
    for start, end in itertools.pairwise([*starts, len(text)]):
        part = text[start:end]
        match = _RESOURCE.match(part)
        rows = re.search(r"name:\s*train\b[^-]{0,200}?num_examples:\s*(\d+)", part)
        columns = re.findall(r"-\s*name:\s*(\w+)\s+dtype:", part)
        if match is None or rows is None:
            continue
        for task in meant:
            key = task.removeprefix("glue/").replace("-", "")
            if key in match[1].lower().replace("-", "") or len(meant) == 1:
                for problem in wrong_identity(task, int(rows[1]), columns):
                    unused = "" if _used(subject, match[1]) else "; the run configs name another dataset and ignore it"
                    yield defect(f"{match[1]} is to be {task_words(task)}: {problem}{unused}", 47, where="design_text")


def _used(subject: Subject, dataset: str) -> bool:
    configs = subject.imported.configs.values() if subject.imported else ()
    return not configs or any(dataset in text for text in configs)


@rule("numeric_yaml", "record", 49)
def ranges_as_text(subject: Subject) -> Iterator[Defect]:
    """Search ranges are numbers under the names of settings."""
    match = re.search(r"\bhyperparameters_to_search['\"]?\s*[=:]\s*(\{[^{}]{0,4000}\})", _text(subject))
    if match is None:
        return
    try:
        space = ast.literal_eval(match[1])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    for key, value in space.items() if isinstance(space, dict) else ():
        if isinstance(value, str) and _RANGE.match(value):
            parts = value.split("-")
            more = f" (split at `-` it has {len(parts)} parts)" if len(parts) != 2 else ""
            yield defect(
                f"the range of {key} is the text '{value}'{more}; write low and high as numbers",
                49,
                where="design_text",
            )
        elif isinstance(value, str) and "," in value:
            yield defect(
                f"the choices of {key} are the text '{value}'; write a list of numbers", 49, where="design_text"
            )
        if not re.fullmatch(r"[A-Za-z_][\w.]*", str(key)):
            yield defect(f"'{short(str(key))}' is no name of a setting", 49, where="design_text")


@rule("claim_coverage", "record", 32, 33)
def narrowed(subject: Subject) -> Iterator[Defect]:
    """The design keeps the arms and tasks that the hypothesis is about."""
    text = _text(subject)
    compared = {stem(one.name) for one in methods(plain(_list(text, "comparative_methods")))}
    wanted = {stem(name) for name in subject.settings.baselines}
    if text and compared and (lost := sorted(wanted - compared)):
        found = f"the hypothesis is compared with {listed(sorted(wanted))}; the design leaves out {listed(lost)}"
        yield defect(found, 32, where="design_text")
    here, meant = tasks(_list(text, "datasets_to_use")), subject.settings.tasks
    if text and here and (left := [task_words(task) for task in meant if task not in here]):
        yield defect(
            f"the hypothesis is about {listed([task_words(t) for t in meant])}; the design leaves out {listed(left)}",
            33,
            where="design_text",
        )


@rule("budget_arith", "record", 35)
def products_agree(subject: Subject) -> Iterator[Defect]:
    """The total rank is counted in the same things everywhere."""
    hypothesis = dict(subject.settings.rank_expressions)
    design = dict(settings(_text(subject)).rank_expressions)
    if subject.imported is None or not design or not hypothesis or design == hypothesis:
        return
    ours, theirs = (", ".join(f"{what} x {times}" for what, times in one.items()) for one in (hypothesis, design))
    text = f"the total rank is {ours} in the hypothesis and {theirs} in the design"
    yield defect(text, 35, where="design_text")


@rule("timing_same_device", "record", 48)
def one_device(subject: Subject) -> Iterator[Defect]:
    """Hypothesis, design and environment name one device."""
    if subject.imported is None:
        return
    said = {
        "the hypothesis": devices(subject.setup),
        "the design": devices(plain(subject.imported.design_text)),
        "the instructions": devices(plain(subject.imported.instructions)),
    }
    named = {name for found in said.values() for name in found}
    timed = "train_seconds" in subject.settings.metrics or any(
        one.quantity == "train_seconds" for one in subject.predictions
    )
    if len(named) > 1 and timed:
        shown = "; ".join(f"{who}: {', '.join(found)}" for who, found in said.items() if found)
        yield defect(
            f"times are compared, and devices differ ({shown}): a time says something on one device only",
            48,
            where="design_text",
            level="warning",
        )


@rule("parse_tolerant", "record", 63)
def answer_as_repr(subject: Subject) -> Iterator[Defect]:
    """An answer that was asked for as JSON is JSON."""
    if subject.imported is not None and subject.imported.answer_form == "python":
        text = (
            "the answer is what Python prints for a dict (single quotes), not JSON; it was read as a literal, without "
            "running it"
        )
        yield defect(text, 63, where="answer", level="warning")


@rule("evaluation_axes", "record", 82)
def axes(subject: Subject) -> Iterator[Defect]:
    """Rounds are judged on feasibility and consistency too, not on novelty and significance alone."""
    rounds = subject.imported.rounds if subject.imported else ()
    judged = [one for one in rounds if one.novelty_text or one.significance_text]
    said = plain(" ".join(f"{one.novelty_text} {one.significance_text}" for one in judged))
    if judged and not re.search(r"feasib|consisten|contradict", said, re.I):
        text = (
            "rounds were judged on novelty and significance alone; nothing asked whether they can be done and agree "
            "with each other"
        )
        yield defect(text, 82, where="evaluation", level="note")
