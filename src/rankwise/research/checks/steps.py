"""Rules on steps: does what happens at a step happen, and what does an average over steps see?"""

import ast
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.facts import steps_per_epoch, task_words
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.checks.sketch import constants, ends_with, names, parse
from rankwise.research.wording import states

BIAS_STEPS = 50


@rule("step_arith", "hypothesis", 6)
def warmup_fits(subject: Subject) -> Iterator[Defect]:
    """A warm-up ends before training does, on every task, and the sketch has the text's."""
    said = subject.settings
    coded = constants(parse(subject.code)).get("warmup_steps")
    fixed = int(coded) if coded else said.warmup_steps
    for task in said.tasks:
        epoch = steps_per_epoch(task, said.batch_size or 0)
        if epoch is None or fixed is None or not said.epochs:
            continue
        total = round(epoch * said.epochs)
        name = task_words(task)
        if fixed >= total:
            text = (
                f"{name} has {epoch:,} steps per epoch, {total:,} in all; a warm-up of {fixed:,} never ends and ranks "
            )
            yield defect(f"{text}are never reallocated", 6, where="experimental_code" if coded else "method")
        elif coded and said.warmup_epochs and abs(fixed / (said.warmup_epochs * epoch) - 1) > 0.05:
            text = (
                f"the warm-up is {said.warmup_epochs:g} epoch in the text ({said.warmup_epochs * epoch:,.0f} steps on "
                f"{name}) "
            )
            yield defect(f"{text}and {fixed:,} steps in the sketch", 6, where="experimental_code")


@rule("ema_window", "hypothesis", 7)
def window(subject: Subject) -> Iterator[Defect]:
    """A moving average sees about 1 / (1 - beta) steps, whatever span the text speaks of."""
    said = subject.settings
    ema = states(subject.method, r"\bEMA\b|exponential[- ]moving|moving average")
    if not ema or said.beta is None or not 0 < said.beta < 1:
        return
    steps = [
        round(said.warmup_epochs * epoch)
        for task in said.tasks
        if said.warmup_epochs and (epoch := steps_per_epoch(task, said.batch_size or 0))
    ]
    span = 1 / (1 - said.beta)
    if steps and max(steps) > 20 * span:
        weight = 1 - said.beta**BIAS_STEPS
        text = (
            f"with beta {said.beta:g} an average looks back about {span:.0f} steps: the last {BIAS_STEPS} of "
            f"{max(steps):,} "
            f"carry {weight:.1%} of it, so it says nothing of the rest of the warm-up"
        )
        yield defect(text, 7, where="method", level="warning")
    if _starts_at_zero(subject):
        text = (
            f"the average starts at 0 and is not divided by 1 - beta^t: after 5 steps it is {1 - said.beta**5:.0%} of "
            "what it should be"
        )
        yield defect(text, 7, where="experimental_code", level="warning")


def _starts_at_zero(subject: Subject) -> bool:
    sketch = parse(subject.code)
    zero = any("ema" in name.lower() for one in sketch.calls("zeros") for name in _targets_of(sketch.parents.get(one)))
    return zero and "**" not in subject.code and "correct" not in subject.code


def _targets_of(node: ast.AST | None) -> set[str]:
    return {name for target in getattr(node, "targets", ()) for name in names(target)}


_ROUNDS = r"\branks?\b[^.\n]{0,60}\bround(?:ed|ing|s)?\b|\bround(?:ed|ing|s)?\b[^.\n]{0,60}\branks?\b"


@rule("rank_alloc", "hypothesis", 11)
def rounding(subject: Subject) -> Iterator[Defect]:
    """Ranks come from largest remainders with a floor and a cap, not from rounding and mending in order."""
    if not states(subject.words, r"\bbudget\b|\btotal rank\b|\bR_?total\b"):
        return
    bounded = states(
        subject.words,
        r"largest[- ]remainder|\bfloor\b|r_min|min(?:imum|imal) rank|at least (?:one|1|rank 1)|cap(?:ped)? (?:at|of)",
    )
    rounds = re.search(_ROUNDS, subject.method, re.I)
    sketch = parse(subject.code)
    in_order = next((one for one in sketch.walk() if _mends_in_order(one)), None)
    clamped = any(True for name in ("clamp", "clamp_", "clip") for _ in sketch.calls(name))
    if bounded or clamped or not (rounds or in_order is not None):
        return
    total = next(iter(subject.settings.budgets), 128)
    ranks = rounded_in_order([2.0**-index for index in range(24)], total)
    text = (
        f"shares are rounded and mended one by one from the first matrix on, without a smallest or largest rank: 24 "
        f"matrices whose scores halve from one to the next get {', '.join(map(str, ranks[:4]))}, … of {total}, and "
        f"{sum(rank <= 0 for rank in ranks)} of them none; PEFT refuses rank 0. Use largest remainders with a floor "
        "and a cap"
    )
    yield defect(text, 11, where="experimental_code" if in_order is not None else "method")


def rounded_in_order(scores: list[float], total: int) -> list[int]:
    """What rounding shares, and adding or taking 1 from the first on until the sum fits, gives."""
    whole = sum(scores)
    ranks = [round(score / whole * total) for score in scores]
    missing = total - sum(ranks)
    for index in range(abs(missing)):
        ranks[index % len(ranks)] += 1 if missing > 0 else -1
    return ranks


def _mends_in_order(node: ast.AST) -> bool:
    """`ranks[i % n] += …`."""
    return (
        isinstance(node, ast.AugAssign)
        and isinstance(node.target, ast.Subscript)
        and isinstance(node.target.slice, ast.BinOp)
        and isinstance(node.target.slice.op, ast.Mod)
    )


@rule("function_preserving", "hypothesis", 12, 13)
def resizing(subject: Subject) -> Iterator[Defect]:
    """Changing a rank keeps what was learned: an SVD of B A and the same scaling per component."""
    keeps = states(
        subject.words, r"\bQR\b|SVD of (?:the )?(?:B ?A|product|update)|function[- ]preserving|leading singular"
    )
    clause = states(
        subject.method,
        r"(?:kept|first|remaining) (?:\w+ ){0,2}columns|columns are (?:kept|copied|dropped)|dropped columns",
    )
    sliced = any(ends_with(one, "weight", "data") and {"lora_A", "lora_B"} & names(one) for one in _sliced(subject))
    if (clause or sliced) and not keeps:
        text = (
            "a LoRA factor's columns are in no order, so keeping the first ones drops learned directions at random; "
            "cut an "
        )
        yield defect(f"{text}SVD of B A instead", 12, where="method")
    new_rank = clause or any(_leaves_alpha(one) for one in parse(subject.code).calls("update_layer"))
    scaled = re.search(r"\bscal(?:ing|e)\b|\balpha\s*/\s*r\b|α\s*/\s*r", subject.words, re.I)
    if new_rank and not scaled:
        rank = subject.settings.rank or 8
        text = (
            f"scaling is alpha / r: with alpha {rank} it jumps from 1 to {rank / 2:g} when a rank falls from {rank} to "
            "2, "
        )
        yield defect(f"{text}and the function with it; keep alpha / r per matrix", 13, where="method")


def _leaves_alpha(node: ast.Call) -> bool:
    """Is no alpha given for the new rank?"""
    return len(node.args) < 3 and not any(one.arg in ("lora_alpha", None) for one in node.keywords)


def _sliced(subject: Subject) -> Iterator[ast.expr]:
    for node in parse(subject.code).walk():
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            yield node.value
