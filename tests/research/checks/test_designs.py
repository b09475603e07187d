"""Typed designs: what cannot test its claims is found, what can is not."""

import pytest
from research.checks.judged import numbers, repaired

from rankwise.research.artefacts import Claim, Dataset, Design, DesignArm, Search
from rankwise.research.checks import check_design

CLAIMS = (
    Claim(id="C1", text="more than LoRA", kind="superiority", arm="glora", reference="lora", expected=0.02),
    Claim(
        id="C2",
        text="not slower",
        kind="equivalence",
        arm="glora",
        reference="lora",
        quantity="train_seconds",
        margin=0.05,
    ),
)


def design(**changes):
    values = {
        "name": "test",
        "question": "Is it?",
        "model": "microsoft/deberta-v3-base",
        "arms": (
            DesignArm(name="glora", role="proposed", method={"name": "glora", "warmup": 0.1}),
            DesignArm(name="lora", role="comparative", method={"name": "lora"}),
        ),
        "datasets": (
            Dataset(task="glue/mnli", rows=392_702, columns=("premise", "hypothesis", "label", "idx")),
            Dataset(task="glue/qnli", rows=104_743),
            Dataset(task="glue/qqp"),
        ),
        "metrics": ("accuracy",),
        "budgets": ("r=8", "144 ranks"),
        "seeds": 5,
        "claims": CLAIMS,
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.0005, "warmup": 100},
        "search": (Search(path="training.learning_rate", kind="float", low=1e-4, high=1e-3, log=True),),
        **changes,
    }
    return Design(**values)


def test_a_sane_design_has_none():
    assert check_design(design(), repaired("configs").rounds[-1].hypothesis) == ()
    assert check_design(design()) == ()


GLORA = DesignArm(name="glora", role="proposed", method={"name": "glora", "warmup": 20_000})
CASES = [
    (32, {"arms": (GLORA,)}),
    (33, {"datasets": (Dataset(task="glue/mnli"),)}),
    (34, {"arms": (GLORA, DesignArm(name="lora", role="control", method={"name": "lora"}))}),
    (34, {"training": {"max_steps": 50, "warmup": 60}}),
    (34, {"training": {"learning_rate": 0.1}}),
    (35, {"budgets": ("48 ranks",)}),
    (35, {"budgets": ("100 ranks",)}),
    (36, {"search": (Search(path="method.budget", kind="categorical", choices=("r=2", "r=4")),)}),
    (40, {"search": (Search(path="learning_rate", kind="float", low=1e-4, high=1e-3),)}),
    (41, {"search": (Search(path="training.learning_rate", kind="float", low=1e-3, high=1e-4),)}),
    (41, {"search": (Search(path="training.learning_rate", kind="categorical"),)}),
    (41, {"search": (Search(path="training.learning_rate", kind="float", low=0.0, high=1e-4, log=True),)}),
    (43, {"metrics": ("pearson",)}),
    (43, {"metrics": ("bleu",)}),
    (45, {"seeds": 1}),
    (47, {"datasets": (Dataset(task="glue/mnli", said="a copy", rows=1_000),)}),
    (47, {"datasets": (Dataset(task="glue/mnli", columns=("x", "y")),)}),
    (81, {"arms": (DesignArm(name="lora", role="control", method={"name": "lora"}),)}),
]


@pytest.mark.parametrize(("number", "changes"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_a_broken_design(number, changes):
    found = check_design(design(**changes), repaired("configs").rounds[-1].hypothesis)
    assert number in numbers(found)
    assert all(one.where for one in found)


def test_cases_cover_every_number_that_designs_can_raise():
    from rankwise.research.checks import RULES

    assert {item for rule in RULES if rule.on == "design" for item in rule.items} == {case[0] for case in CASES}


def test_a_note_excuses_data_that_are_not_here():
    left = design(datasets=(Dataset(task="glue/mnli"),), notes=("QNLI and QQP are not on this machine: no data",))
    assert 33 not in numbers(check_design(left, repaired("configs").rounds[-1].hypothesis))
