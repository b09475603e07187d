"""GLoRA: gradient-norm aware rank allocation.

Every matrix starts at uniform rank. Over the first `warmup` steps an exponential moving average of each matrix's
gradient norm is kept,

    g_k ← β·g_k + (1 - β)·‖∂L/∂·_k‖_F,

then ranks are handed out in proportion to g_k at exactly the same budget (with a floor and a cap), the living adapters
are resized without changing what they compute more than they must, and training goes on; with `every`, again and again.
`signal` says what is averaged and how it becomes a score: a gradient norm or any other entry of `allocation.signals`.
Signals of the adapter's own gradients are read where the optimizer reads them, after clipping; the others before.

Only steps whose weight in the average is at least `NEGLIGIBLE` of the latest one's are listened to, so that a long
warm-up costs no more than a short one. PEFT ships an unrelated method of the same name (arXiv 2306.07967).
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Literal, final

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from rankwise.adapters.contract import METHODS, AdapterConfig, Resize, generator_for, refuse_impossible
from rankwise.adapters.families import family
from rankwise.adapters.lora_method import LoraMethod
from rankwise.adapters.observer import Observer
from rankwise.allocation.allocate import allocate, spent
from rankwise.allocation.schedules import Length, in_steps
from rankwise.allocation.signals import SIGNALS, Averaged, Score, score_total
from rankwise.errors import AllocationError, BudgetError, ConfigError, Finding

NEGLIGIBLE = 0.01
"""Steps that count less than this share of the latest one are not listened to."""

_DECISION = 2
"""Salt of the random streams of decisions (`signal: random`); an observer's is 1."""


def known_signal(name: str) -> str:
    """`name` if a signal of that name is registered.

    Raises:
        ValueError: there is none; says which there are.
    """
    if name not in SIGNALS:
        raise ValueError(SIGNALS.explain(name))
    return name


@METHODS.register("glora")
class GloraConfig(AdapterConfig):
    """Gradient-norm aware rank allocation, after a warm-up and, if asked, again and again."""

    name: Literal["glora"] = "glora"
    signal: Annotated[str, AfterValidator(known_signal)] = Field(
        default="estimate", description="what decides; `rankwise list` says what each is: " + ", ".join(SIGNALS)
    )
    warmup: Length = Field(
        default=0.1, description="when ranks are first reallocated: a step (int), or a fraction of all steps (0 to 1)"
    )
    every: Length | None = Field(
        default=None,
        description="from one reallocation to the next: steps (int) or fraction of all (default: only once)",
    )
    until: Length = Field(
        default=0.7, description="with `every`: no reallocation after this step (int) or fraction of all steps"
    )
    beta: float = Field(
        default=0.9, ge=0, lt=1, description="decay of the moving average over steps (window 1 / (1 - beta) steps)"
    )
    smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="with `every`: weight of earlier reallocations' scores, each relative to its mean (0: forget them)",
    )
    normalise: Literal["none", "family"] = Field(
        default="none",
        description="`family` divides a score by the mean of its kind of matrix (all queries, say), so that ranks move "
        "between blocks and not between kinds",
    )
    per: Literal["rank", "parameter"] = Field(
        default="rank",
        description="a score is the gain per `rank`, or is divided by what a rank costs (`parameter`)",
    )
    floor: int = Field(
        default=1, ge=0, description="smallest rank a matrix may get; 0 takes adapters off for good (not with `every`)"
    )
    cap: int | None = Field(default=None, ge=1, description="largest rank a matrix may get (default: its full rank)")

    def check(self, total_steps: int) -> list[Finding]:
        """Reallocations have to happen, and to leave steps for training; signals need steps to see something."""
        first = in_steps(self.warmup, total_steps)
        if first >= total_steps:
            message = (
                f"{self.warmup} is step {first} of {total_steps}, so ranks would never be reallocated; "
                f"use at most {total_steps - 1}, or a fraction such as 0.1"
            )
            return [Finding("method.warmup", message)]
        findings = self._check_repetition(first, total_steps)
        signal = SIGNALS[self.signal]
        least, settle = signal.least, signal.settle
        too_short = first < settle + least or (self.every is not None and in_steps(self.every, total_steps) < least)
        if too_short or window(self.beta) < least:
            message = (
                f"`{self.signal}` has to see {settle + least} steps before the first reallocation and {least} before "
                f"any other, all of which count; raise warmup ({self.warmup}), every ({self.every}) or beta "
                f"({self.beta:g}), or use another signal"
            )
            findings.append(Finding("method.signal", message))
        return findings

    def _check_repetition(self, first: int, total_steps: int) -> list[Finding]:
        if self.every is None:
            if not self.smoothing:
                return []
            message = f"{self.smoothing:g} averages over reallocations, but there is only one; set `every`, or use 0"
            return [Finding("method.smoothing", message)]
        findings = []
        every, until = in_steps(self.every, total_steps), in_steps(self.until, total_steps)
        if until >= total_steps:
            message = f"{self.until} is step {until} of {total_steps}; a reallocation has to leave steps to train"
            findings.append(Finding("method.until", message))
        if first + every > until:
            message = (
                f"a second reallocation, {every} steps after the first at step {first}, would come after `until` (step "
                f"{until}); lower warmup or every, raise until, or leave `every` out"
            )
            findings.append(Finding("method.every", message))
        if self.floor == 0:
            message = "0 takes adapters off, and one that is gone cannot come back at a later reallocation; use 1"
            findings.append(Finding("method.floor", message))
        return findings

    def reallocations(self, total_steps: int) -> tuple[int, ...]:
        """The steps after which ranks are handed out."""
        first = in_steps(self.warmup, total_steps)
        if self.every is None:
            return (first,)
        return tuple(range(first, in_steps(self.until, total_steps) + 1, in_steps(self.every, total_steps)))

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Glora":
        """Wrap the model at uniform rank and plan the reallocations.

        Raises:
            ConfigError: the plan does not fit the training.
        """
        refuse_impossible(self, total_steps)
        return Glora(model, self, reallocate_at=self.reallocations(total_steps), seed=seed)


def window(beta: float) -> int:
    """How many of the latest steps have at least `NEGLIGIBLE` of the latest one's weight, β^age >= NEGLIGIBLE."""
    return 1 if beta == 0 else 1 + math.floor(math.log(NEGLIGIBLE) / math.log(beta))


@final
class Glora(LoraMethod):
    """Listens before every step in `reallocate_at`, and asks for a resize after it."""

    config: GloraConfig

    def __init__(self, model: nn.Module, config: GloraConfig, *, reallocate_at: tuple[int, ...], seed: int) -> None:
        super().__init__(model, config, seed=seed)
        self.signal = SIGNALS[config.signal]
        self.reallocate_at = reallocate_at
        self.step = 0  # the last one that was finished
        self.done = 0  # reallocations
        self.average: list[Tensor] = []
        self.seen = 0  # steps in the average
        self.smoothed: dict[str, Score] = {}
        columns = self._components() + 8  # a few more than are used make the sketch's leading eigenvalues accurate
        self.observer = Observer(self.model, self.matrices, self.signal, seed=seed, columns=columns)
        self._check_bounds()
        self._prepare(1)

    def before_optimizer_step(self, step: int) -> None:
        """Take what this step shows into the moving average."""
        if not self._listens(step):
            return
        observed = self.observer.take()
        if observed is None:
            return
        values = self.signal.statistics(observed)
        if not self.average:
            # contiguous, as a saved average comes back: the order in which a norm adds up depends on the layout
            self.average = [torch.zeros_like(v, memory_format=torch.contiguous_format) for v in values]
        if values:
            torch._foreach_lerp_(self.average, values, 1 - self.config.beta)
        self.seen += 1

    def after_optimizer_step(self, step: int) -> Resize | None:
        """Where one is due, ask for the new ranks."""
        resize = self._reallocate() if step in self.reallocate_at else None
        self.step = step
        self._prepare(step + 1)
        return resize

    def scores(self) -> dict[str, Score]:
        """What the signal makes of the average since the last reallocation, corrected for its start at zero."""
        beta, n = self.config.beta, self.seen
        averaged = Averaged(
            values=torch._foreach_div(self.average, 1 - beta**n) if self.average else (),
            squared_weights=(1 - beta) * (1 + beta**n) / ((1 + beta) * (1 - beta**n)),
            matrices=len(self.matrices),
            generator=generator_for(self.seed, _DECISION, 0, self.done),
        )
        return dict(zip(self.matrices, self.signal.scores(averaged), strict=True))

    def allocate(self, scores: Mapping[str, Score]) -> dict[str, int]:
        """Ranks for `scores`, spending exactly the budget."""
        config = self.config
        return allocate(scores, self.costs, self.target, floor=config.floor, cap=self._caps(), per=config.per)

    def check_finished(self) -> None:
        """Ranks were reallocated as planned and the budget is spent to the last parameter."""
        if self.done < len(self.reallocate_at):
            how_often = f"{self.done} of {len(self.reallocate_at)} times" if self.done else "never"
            raise AllocationError(
                f"glora {how_often} reallocated: it was to do so after step {self.reallocate_at[self.done]}. Either "
                "training stopped before, or its hooks were not called: does the trainer have a RankwiseCallback?"
            )
        ranks = self.rank_pattern()
        total = sum(ranks.values()) if self.target.unit == "ranks" else spent(ranks, self.costs)
        if total != self.target.total:
            raise AllocationError(f"glora ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}")

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, the moving average, earlier scores, and how far training and reallocations have come."""
        state = super().state_dict()
        state |= {f"rankwise.average.{i}": t.clone() for i, t in enumerate(self.average)}
        numbers = enumerate(self.smoothed.values())
        state |= {f"rankwise.smoothed.{i}": torch.tensor(score, dtype=torch.float64) for i, score in numbers}
        state |= {f"rankwise.observer.{key}": value for key, value in self.observer.state_dict().items()}
        return state | {"rankwise.progress": torch.tensor([self.step, self.done, self.seen])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights, ranks and memory, and listen from the next step on."""
        super().load_state_dict(state)
        device = next(self.model.parameters()).device
        self.step, self.done, self.seen = state["rankwise.progress"].tolist()
        self.average = [t.clone().to(device) for t in _numbered(state, "rankwise.average.")]
        smoothed = [t.tolist() for t in _numbered(state, "rankwise.smoothed.")]
        self.smoothed = dict(zip(self.matrices, smoothed, strict=True)) if smoothed else {}
        prefix = "rankwise.observer."
        self.observer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self._prepare(self.step + 1)

    def _reallocate(self) -> Resize:
        scores = self._decisive(self.scores())
        self.done += 1
        self.average, self.seen = [], 0
        return Resize(self.allocate(scores), {name: score_total(score) for name, score in scores.items()})

    def _decisive(self, scores: Mapping[str, Score]) -> dict[str, Score]:
        """Scores normalised and smoothed. Before they are averaged over reallocations they are made relative to their
        mean, because gradients shrink as training goes on."""
        config = self.config
        if config.normalise == "family":
            scores = relative(scores, {name: family(name) for name in scores})
        if not config.smoothing:
            return dict(scores)
        scores = relative(scores, dict.fromkeys(scores, "all"))
        if self.smoothed:
            scores = {name: blend(self.smoothed[name], score, config.smoothing) for name, score in scores.items()}
        self.smoothed = dict(scores)
        return dict(scores)

    def _listens(self, step: int) -> bool:
        due = next((moment for moment in self.reallocate_at if moment >= step), None)
        if due is None:
            return False
        settle = self.signal.settle if due == self.reallocate_at[0] else 0
        return due - step < window(self.config.beta) + settle

    def _prepare(self, step: int) -> None:
        """Listen to `step`, or not."""
        if self._listens(step):
            self.observer.start(step)
        else:
            self.observer.stop()

    def _components(self) -> int:
        """Largest rank that a sketched spectrum speaks for: the cap, or four times the mean rank and at least 16."""
        mean = self.target.total / (len(self.costs) if self.target.unit == "ranks" else sum(self.costs.values()))
        return self.config.cap or max(16, 4 * math.ceil(mean))

    def _caps(self) -> dict[str, int]:
        sketched = "moment_sketch" in self.signal.needs
        limit = self._components() if sketched else self.config.cap
        return {n: m.full_rank if limit is None else min(limit, m.full_rank) for n, m in self.matrices.items()}

    def _check_bounds(self) -> None:
        """Fail before training, not at the end of the warm-up, if floor and cap cannot meet the budget."""
        try:
            self.allocate(dict.fromkeys(self.matrices, 1.0))
        except BudgetError as error:
            raise ConfigError("glora", [Finding("method.floor, method.cap", str(error))]) from error


def relative(scores: Mapping[str, Score], group: Mapping[str, str]) -> dict[str, Score]:
    """Scores over the mean of their group (a spectrum counts with its sum); a group of zeros stays as it is."""
    totals: dict[str, list[float]] = defaultdict(list)
    for name, score in scores.items():
        totals[group[name]].append(score_total(score))
    means = {key: sum(values) / len(values) for key, values in totals.items()}
    return {name: _times(score, 1 / (means[group[name]] or 1.0)) for name, score in scores.items()}


def blend(earlier: Score, later: Score, weight: float) -> Score:
    """`weight` of the earlier score and the rest of the later one, of the same length."""
    if isinstance(earlier, list) and isinstance(later, list):
        return [weight * a + (1 - weight) * b for a, b in zip(earlier, later, strict=True)]
    return weight * score_total(earlier) + (1 - weight) * score_total(later)


def _times(score: Score, factor: float) -> Score:
    return [value * factor for value in score] if isinstance(score, list) else score * factor


def _numbered(state: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    count = sum(key.startswith(prefix) for key in state)
    return [state[f"{prefix}{i}"] for i in range(count)]
