"""A comparison from flags as the text of a plan: the same runs, and the claims that such a comparison is about."""

from typing import Any

from rankwise.experiments.compare import Comparing
from rankwise.experiments.schema import TrainingConfig
from rankwise.experiments.yaml_text import dump_yaml

REFERENCE = "lora"
_HEAD = (
    "# The plan of this comparison: `rankwise compare plan.yaml` does the same runs and judges the claims.\n"
    "# Claims, arms, tasks, budgets, seeds and profiles may be added. Claims that are added or changed after the\n"
    "# first run are judged too, as post hoc.\n"
)


def plan_text(comparing: Comparing, name: str) -> str:
    """The YAML of a plan with the runs of `comparing`, and for each method the claim that it beats the reference.

    The reference is `lora` if it takes part, else the first method.
    """
    methods = comparing.methods
    reference = REFERENCE if REFERENCE in methods else methods[0]
    plain = TrainingConfig().model_dump(mode="json")
    training = {k: v for k, v in comparing.training.model_dump(mode="json").items() if v != plain[k]}
    data: dict[str, Any] = {
        "name": name,
        "model": comparing.model,
        "arms": {method: method for method in methods},
        "tasks": [comparing.task.model_dump(mode="json", exclude_defaults=True) | {"name": comparing.task.name}],
        "budgets": [comparing.budget],
        "seeds": list(comparing.seeds),
        "training": training,
        "claims": [
            {
                "id": f"{method}-beats-{reference}",
                "text": f"{method} is better than {reference} at the same number of parameters",
                "kind": "superiority",
                "arm": method,
                "reference": reference,
            }
            for method in methods
            if method != reference
        ],
    }
    return _HEAD + dump_yaml(data)
