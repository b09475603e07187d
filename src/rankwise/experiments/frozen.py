"""What a plan said when its first run began: `plan.json` in the run folder.

A claim is recognised by its digest: everything that decides its verdict (test, margin, arms, tasks, budgets, seeds,
training, protocol), but not its wording. A claim of a later plan whose digest is not among the frozen ones is a new
claim, made after the first results could be seen: post hoc. The frozen claims stay, and are judged as they were,
whatever becomes of the file.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.errors import OutputError
from rankwise.experiments.plan import ClaimConfig, PlanConfig
from rankwise.experiments.plan_runs import Plan, methods_of, recorded_plan
from rankwise.experiments.results import write_atomically
from rankwise.experiments.verdicts import about

FROZEN = "plan.json"
_FORMAT = 2


@dataclass(frozen=True)
class Frozen:
    """A plan as it was frozen; `late` are ids of claims that had results before that, in a store used again."""

    plan: Plan
    late: tuple[str, ...]


def digest_of(claim: ClaimConfig, plan: PlanConfig) -> str:
    """What a claim is recognised by, 16 hex digits.

    Args:
        claim: of the plan.
        plan: at its profile.
    """
    data = plan.model_dump(mode="json")
    del data["training"]["report_to"]
    tasks = [task for task in data["tasks"] if claim.tasks is None or task["name"] in claim.tasks]
    budgets = [budget for budget in data["budgets"] if claim.budgets is None or budget in claim.budgets]
    arms = {name: arm for name, arm in data["arms"].items() if name in claim.arms}
    for arm in arms.values():
        arm.pop("reason")
    content = {
        "claim": claim.model_dump(mode="json", exclude={"text", "source", "reason", "effect", "tasks", "budgets"}),
        "design": {"tasks": tasks, "budgets": budgets, "arms": arms}
        | {name: data[name] for name in ("model", "seeds", "training", "evaluation", "protocol")},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def freeze(folder: Path, plan: Plan, known: Collection[str]) -> Frozen:
    """Write down what the plan says, unless that was done before; returns what was frozen.

    Args:
        folder: of the runs.
        plan: at its profile.
        known: ids of completed runs. A claim is late if both of its arms are there for some task, budget and seed.

    Raises:
        OutputError: the folder holds another plan, or the file is damaged.
    """
    if (folder / FROZEN).is_file():
        return check_frozen(folder, plan)
    late = tuple(claim.id for claim in plan.config.claims if _has_results(claim, plan, known))
    content = {
        "format": _FORMAT,
        "profile": plan.profile,
        "digests": {claim.id: digest_of(claim, plan.config) for claim in plan.config.claims},
        "late": late,
        "methods": methods_of(plan.runs),
        "plan": plan.config.model_dump(mode="json", exclude={"profiles"}),
    }
    write_atomically(folder / FROZEN, json.dumps(content, indent=1, ensure_ascii=False).encode())
    return Frozen(plan, late)


def check_frozen(folder: Path, plan: Plan) -> Frozen:
    """The frozen plan of a folder, if it is an earlier state of this one.

    Raises:
        OutputError: it is another plan or profile, or the file is damaged.
    """
    known = read_frozen(folder)
    for what, there, here in (
        ("plan", known.plan.config.name, plan.config.name),
        ("profile", known.plan.profile, plan.profile),
    ):
        if there != here:
            raise OutputError(f"{folder} holds {what} '{there}', this is '{here}'; choose another --output")
    return known


def _has_results(claim: ClaimConfig, plan: Plan, known: Collection[str]) -> bool:
    places: dict[tuple[object, ...], set[str]] = {}
    for run in plan.runs:
        if run.config.run_id in known and run.arm in claim.arms and about(claim, run):
            places.setdefault((run.config.task, run.budget, run.config.seed), set()).add(run.arm)
    return any(len(arms) == 2 for arms in places.values())


def read_frozen(folder: Path) -> Frozen:
    """The plan that was frozen in a run folder.

    Raises:
        OutputError: there is none, or it was changed by hand.
    """
    path = folder / FROZEN
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digests, late = dict(content["digests"]), tuple(map(str, content["late"]))
        config = PlanConfig.model_validate(content["plan"], context=_named(content["plan"]))
        plan = recorded_plan(config, str(path), content["profile"], content["methods"])
    except FileNotFoundError:
        raise OutputError(f"{folder} holds no {FROZEN}: no plan was run there") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    now = {claim.id: digest_of(claim, plan.config) for claim in plan.config.claims}
    if now != digests:
        changed = sorted(name for name in now.keys() | digests.keys() if now.get(name) != digests.get(name))
        raise OutputError(
            f"{path} was changed after it was frozen (claims {', '.join(changed)}), so its verdicts would mean "
            "nothing; restore the file, or run the plan anew in another --output"
        )
    return Frozen(plan, late)


def _named(plan: Mapping[str, Any]) -> dict[str, list[str]]:
    """Tasks and budgets that the plan has or its claims name: a profile may have left some out."""
    return {
        name: [each if isinstance(each, str) else each["name"] for each in plan[name]]
        + [each for claim in plan["claims"] for each in claim[name] or ()]
        for name in ("tasks", "budgets")
    }


def to_judge(frozen: Frozen, now: Plan | None) -> list[tuple[Plan, bool]]:
    """Plans with the claims to judge together, and whether these are post hoc: frozen claims, then those that are late.

    Args:
        frozen: when the first run began.
        now: the plan as it is now; its claims that are not among the frozen ones are late too.
    """
    plan = frozen.plan
    known = {digest_of(claim, plan.config) for claim in plan.config.claims}
    parts = [
        (_only(plan, [claim for claim in plan.config.claims if claim.id not in frozen.late]), False),
        (_only(plan, [claim for claim in plan.config.claims if claim.id in frozen.late]), True),
    ]
    if now is not None:
        new = [claim for claim in now.config.claims if digest_of(claim, now.config) not in known]
        parts.append((_only(now, new), True))
    return parts[:1] + [(part, late) for part, late in parts[1:] if part.config.claims]


def _only(plan: Plan, claims: Sequence[ClaimConfig]) -> Plan:
    return replace(plan, config=plan.config.model_copy(update={"claims": tuple(claims)}))
