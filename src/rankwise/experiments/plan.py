"""A plan: runs, and the claims they are to answer.

The runs are the product of arms, tasks, budgets and seeds. An arm is a method with its settings under a name of its
own; what differs between arms is written in the arm, everything else is the same for all. A profile (`smoke`, `pilot`,
`full`) replaces some of it: fewer tasks, seeds or steps for the same claims.

A claim is data: what is compared with what, in which metric, by which kind of test and at which margin. Nothing in this
module imports torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rankwise.experiments.schema import (
    EvaluationConfig,
    ModelConfig,
    Section,
    TrainingConfig,
    model_section,
    task_config,
)
from rankwise.registry import did_you_mean
from rankwise.tasks import TaskConfig, canonical_task
from rankwise.tasks.metrics import METRICS, canonical_metric

Kind: TypeAlias = Literal["superiority", "non-inferiority", "equivalence", "bound", "not-testable"]
OF_THE_MACHINE = ("train_seconds", "peak_memory_bytes")
"""Costs that depend on the machine and vary from run to run; all others are counted."""
COSTS = (*OF_THE_MACHINE, "parameters", "peak_parameters", "inference_flops", "active_share", "total_rank")
"""What a run costs. Compared as ratios, arm over reference; less is better."""
MEASURES = ("premise",)
"""Measured beside the metrics (see `run_costs`) and compared as differences, more is better."""
MAIN = "main"
"""The metric that decides on a task, whatever it is there."""
PROFILES = ("smoke", "pilot", "full")
_NAME = r"^[A-Za-z][A-Za-z0-9_.-]*$"


def _measure(name: str) -> str:
    """Our name of a metric, a cost, or `main`.

    Raises:
        ValueError: there is nothing of that name.
    """
    if name in (MAIN, *COSTS, *MEASURES):
        return name
    found = canonical_metric(name)
    if found is None:
        known = (MAIN, *METRICS, *COSTS, *MEASURES)
        raise ValueError(f"no metric '{name}'{did_you_mean(name, known) or '.'} Allowed: {', '.join(known)}")
    return found


def _seeds(value: object) -> object:
    """`3` is three seeds, 0 to 2."""
    return tuple(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str | Mapping) else value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(twice)}")
    return values


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**32)], ...],
    BeforeValidator(_seeds),
    Field(min_length=1),
    AfterValidator(_unique),
]
AnyModel = Annotated[ModelConfig, BeforeValidator(model_section)]
AnyTask = Annotated[SerializeAsAny[TaskConfig], BeforeValidator(task_config)]
AnyTasks = Annotated[tuple[AnyTask, ...], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_unique)]
Budgets = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_unique)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_unique)]


class ArmConfig(Section):
    """One side of a comparison."""

    method: dict[str, Any] = Field(description="the method's section of a run config; its budget comes from the plan")
    training: dict[str, Any] = Field(default_factory=dict, description="what this arm trains otherwise; needs a reason")
    reason: str = Field(default="", description="why it trains otherwise")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        """`lora` is short for `{method: {name: lora}}`."""
        value = {"method": value} if isinstance(value, str) else value
        if isinstance(value, Mapping) and isinstance(value.get("method"), str):
            value = {**value, "method": {"name": value["method"]}}
        return value

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.training and not self.reason:
            raise ValueError(f"trains otherwise ({', '.join(self.training)}) and gives no `reason`")
        return self


class ClaimConfig(Section):
    """A sentence that the runs are to decide on; see `docs/plans.md` for when each kind is supported or refuted."""

    id: str = Field(pattern=_NAME, description="short name, such as G1")
    text: str = Field(min_length=1, description="the claim in words")
    kind: Kind = Field(description="which test; `not-testable` needs a reason")
    arm: str | None = Field(default=None, description="name of the arm it is about")
    reference: str | None = Field(default=None, description="name of the arm it is compared with")
    metric: Annotated[str, AfterValidator(_measure)] = Field(
        default=MAIN,
        description="a metric, `main` (the one that decides on each task), `premise`, or a cost: " + ", ".join(COSTS),
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        description="in the metric's unit (0.005 is half a point of accuracy); of costs, relative (0.02 is 2 %)",
    )
    effect: float | None = Field(
        default=None,
        gt=0,
        description="true effect that the plan has to be able to see, in the unit of the margin; `plan check` compares "
        "it with what the seeds can find; none: the margin itself",
    )
    at_most: float | None = Field(default=None, description="bound: the difference, or ratio of costs, is at most this")
    at_least: float | None = Field(default=None, description="bound: … at least this")
    tasks: Names | None = Field(default=None, description="tasks it is about; none: all of the plan")
    budgets: Budgets | None = Field(default=None, description="budgets it is about; none: all of the plan")
    source: str = Field(default="", description="where the claim comes from")
    reason: str = Field(default="", description="why it cannot be tested, or what was changed to make it testable")

    @field_validator("tasks")
    @classmethod
    def _our_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if names is None else tuple(canonical_task(name) or name for name in names)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms that it is about."""
        return tuple(name for name in (self.arm, self.reference) if name is not None)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = []
        sides = (self.at_most is not None) + (self.at_least is not None)
        if self.kind == "not-testable":
            if not self.reason:
                problems.append("a claim that is not testable needs a `reason`")
        else:
            problems += [f"`{side}` is missing" for side in ("arm", "reference") if getattr(self, side) is None]
            if self.arm is not None and self.arm == self.reference:
                problems.append(f"arm and reference are both '{self.arm}'")
        if self.kind == "bound" and sides != 1:
            problems.append("a bound has one of `at_most` and `at_least`")
        if self.kind != "bound" and sides:
            problems.append(f"`at_most` and `at_least` belong to kind `bound`, this is {self.kind}")
        if self.kind in ("equivalence", "non-inferiority") and not self.margin:
            problems.append(f"{self.kind} needs a `margin` above 0: no experiment shows that two numbers are the same")
        if self.effect is not None and self.kind == "superiority" and self.effect <= self.margin:
            problems.append(f"an `effect` of {self.effect:g} does not exceed the margin {self.margin:g}")
        if self.kind == "bound" and self.margin:
            problems.append("a bound has no `margin`; put it into `at_most` or `at_least`")
        if problems:
            raise ValueError(f"claim {self.id}: {'; '.join(problems)}")
        return self


class TuningConfig(Section):
    """The same search for every arm, on a part of the training examples."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=2, description="tried for every arm, task and budget, in increasing order"
    )
    share: float = Field(default=0.1, gt=0, lt=1, description="share of the training examples that decides")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the trials")

    @field_validator("learning_rates")
    @classmethod
    def _increasing(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if list(rates) != sorted(set(rates)):
            raise ValueError(f"must increase, got {', '.join(f'{rate:g}' for rate in rates)}")
        return rates


class ProtocolConfig(Section):
    """How claims are judged; the same for all of a plan."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="how often a false claim may be called supported")
    power: float = Field(default=0.8, gt=0.5, lt=1, description="how often a true one should be, for planning seeds")
    correction: Literal["holm", "none"] = Field(default="holm", description="for testing several claims")
    tasks: Literal["fixed", "random"] = Field(
        default="fixed", description="`fixed`: about the tasks that are named; `random`: about tasks in general"
    )
    tuning: TuningConfig | None = Field(default=None, description="search for every arm; none: the plan's settings")


class ProfileConfig(Section):
    """What a profile replaces in its plan."""

    model: AnyModel | None = None
    tasks: AnyTasks | None = None
    budgets: Budgets | None = None
    seeds: Seeds | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    tuning: TuningConfig | None = Field(default=None, description="`null` turns the plan's off")
    minutes: float | None = Field(default=None, gt=0, description="how long it may take on the machine it is meant for")


class PlanConfig(Section):
    """Arms × tasks × budgets × seeds, and the claims they are to answer."""

    name: str = Field(pattern=_NAME, description="short name; names the output folder")
    question: str = Field(default="", description="what it is for, in a sentence or two")
    model: AnyModel = Field(default_factory=ModelConfig, description="base model")
    arms: dict[Annotated[str, Field(pattern=_NAME)], ArmConfig] = Field(
        min_length=1, description="name of the arm to its method"
    )
    tasks: AnyTasks = Field(description="tasks")
    budgets: Budgets = Field(default=("r=4",), description="adapter budgets, in parameters")
    seeds: Seeds = Field(default=(0, 1, 2), description="a number, or the seeds themselves; every arm gets the same")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="as in a run config")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="as in a run config")
    claims: tuple[ClaimConfig, ...] = Field(default=(), description="what is to be decided")
    protocol: ProtocolConfig = Field(default_factory=ProtocolConfig, description="how it is decided")
    profiles: dict[Literal["smoke", "pilot", "full"], ProfileConfig] = Field(
        default_factory=dict, description="what to replace for a quick look, a pilot, or the real thing"
    )

    @model_validator(mode="after")
    def _claims_name_what_is_there(self, info: ValidationInfo) -> Self:
        whole = info.context or {}  # what a profile leaves out may still be named
        tasks = whole.get("tasks", [task.name for task in self.tasks])
        budgets = whole.get("budgets", list(self.budgets))
        ids = [claim.id for claim in self.claims]
        problems = [f"claim {name} is there twice" for name in sorted({i for i in ids if ids.count(i) > 1})]
        for claim in self.claims:
            for what, names, there in (
                ("arm", claim.arms, list(self.arms)),
                ("task", claim.tasks or (), tasks),
                ("budget", claim.budgets or (), budgets),
            ):
                problems += [
                    f"claim {claim.id}: no {what} '{name}' in the plan{did_you_mean(name, there) or '.'} "
                    f"Known: {', '.join(there)}"
                    for name in names
                    if name not in there
                ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def at(self, profile: str | None) -> "PlanConfig":
        """The plan with what a profile replaces; itself for None.

        Claims stay as they are: what they say about tasks or budgets that the profile leaves out is not tested.

        Raises:
            KeyError: the plan has no such profile.
            ValueError: the result is no plan.
        """
        if profile is None:
            return self
        chosen = self.profiles[profile]  # type: ignore[index]
        data = self.model_dump(mode="json", exclude={"profiles"})
        for name in ("model", "tasks", "budgets", "seeds"):
            if getattr(chosen, name) is not None:
                data[name] = chosen.model_dump(mode="json")[name]
        data["training"] = replaced(data["training"], chosen.training)
        if "tuning" in chosen.model_fields_set:
            data["protocol"]["tuning"] = chosen.model_dump(mode="json")["tuning"]
        tasks = {task.name for task in self.tasks}
        budgets = set(self.budgets)
        for one in self.profiles.values():
            tasks |= {task.name for task in one.tasks or ()}
            budgets |= set(one.budgets or ())
        return PlanConfig.model_validate(data, context={"tasks": sorted(tasks), "budgets": sorted(budgets)})


def replaced(training: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A training section with changes; a length given in steps replaces one in epochs, and the other way round."""
    found = {**training, **changes}
    for given, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if changes.get(given) is not None and other not in changes:
            found[other] = None
    return found
