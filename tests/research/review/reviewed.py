"""Projects of our own with runs that were never trained: predictions are invented, so verdicts are known beforehand."""

from dataclasses import replace

import numpy as np

from rankwise.experiments import compare as comparing
from rankwise.experiments.frozen import freeze
from rankwise.experiments.plan_runs import load_plan
from rankwise.experiments.records import RunRecord
from rankwise.experiments.store import Store
from rankwise.research.artefacts import Claim, Dataset, Design, DesignArm, Hypothesis
from rankwise.research.design import make_plan
from rankwise.research.imported import ImportedReview
from rankwise.research.project import Made, Project, Settings, hypothesis_file
from rankwise.research.records_files import IMPORTED_REVIEW
from rankwise.research.run import RUN, RunChoice, judge
from rankwise.tasks.base import MetricValue

HAND = Made(by="hand")
HYPOTHESIS = Hypothesis(
    title="Rank by gradient norms (GLoRA)",
    open_problems="Every matrix gets the same rank.",
    method="Ranks in proportion to a running mean of gradient norms, decided once after a warm-up.",
    experimental_setup="Model: MiniLM. Task: docstrings. Baselines: LoRA. 3 seeds, 60 steps, batch 8, r = 4.",
    expected_result="GLoRA is more accurate than LoRA by 10 points.",
)
DESIGN = Design(
    name="p",
    question="Is glora better?",
    model="minilm",
    arms=(
        DesignArm(name="glora", role="proposed", method={"name": "glora"}, said="GLoRA"),
        DesignArm(name="lora", role="control", method={"name": "lora"}),
        DesignArm(name="random", role="control", method={"name": "random"}),
    ),
    datasets=(Dataset(task="docstrings"),),
    seeds=3,
    training={"max_steps": 60, "batch_size": 8},
    claims=(
        Claim(id="better", text="glora beats lora", kind="superiority", arm="glora", reference="lora", expected=0.35),
        Claim(id="worse", text="lora beats glora", kind="superiority", arm="lora", reference="glora"),
        Claim(id="close", text="glora beats random", kind="superiority", arm="glora", reference="random"),
        Claim(id="never", text="nobody knows", kind="not-testable", reason="no run tells"),
    ),
    notes=("arm lora added by code: control",),
)
WRONG = {"glora": 8, "lora": 30, "random": 8}
"""Of 60 examples; plus the seed for glora, less the seed for random."""


def designed(folder, **changes):
    """A project with a hypothesis, a design and its plan."""
    project = Project(folder / "project")
    project.write("project.json", Settings(topic="Ranks"), HAND)
    project.write(hypothesis_file(0), HYPOTHESIS, HAND)
    project.write("design.json", DESIGN.model_copy(update=changes), HAND)
    make_plan(project)
    return project


def ran(folder, profile="smoke", *, premise=None, **changes):
    """The same, with every run of a profile in the store, and verdicts."""
    project = designed(folder, **changes)
    plan = load_plan(project.path("plan.yaml"), profile)
    runs = project.path(f"runs/{profile}")
    runs.mkdir(parents=True)
    comparing.claim(runs, [run.config for run in plan.runs], "rankwise", runs / "store.sqlite")
    freeze(runs, plan, ())
    with Store(runs / "store.sqlite") as store:
        for run in plan.runs:
            record(store, run, premise)
    choice = RunChoice(profile=profile, why="asked for", budget_minutes=1)
    project.write(RUN, choice, HAND.model_copy(update={"inputs": project.inputs("plan.yaml")}))
    judge(project, profile)
    return project


def record(store, run, premise):
    """One finished run."""
    seed = run.config.seed
    found = RunRecord(
        run_id=run.config.run_id,
        method=run.config.method.name,
        task=run.config.task.name,
        model="minilm",
        seed=seed,
        budget=run.budget,
        parameters=1000,
        peak_parameters=1200,
        train_seconds=5.0 + seed,
        environment={"machine": "a machine", "versions": {}},
    )
    store.begin(found)
    right = np.arange(60.0) % 4
    count = WRONG[run.arm] + {"glora": seed, "random": -seed}.get(run.arm, 0)
    guess = right.copy()
    wrong = np.random.default_rng(seed).permutation(60)[:count]
    guess[wrong] = (guess[wrong] + 1) % 4
    store.add_predictions(found.run_id, "validation", guess, right)
    costs = {} if premise is None else {"premise": premise, "premise_modules": 36.0}
    metrics = {"accuracy": MetricValue(float((guess == right).mean()), 0.05, 60)}
    store.finish(replace(found, status="completed", metrics=metrics, costs=costs))


REVIEW = ImportedReview(
    title="AdaLoRA: budgets that move",
    arxiv="2303.10512",
    model="m",
    sections={
        "core_claim": "The magnitudes of the singular values decide how many of them each matrix keeps.",
        "load_bearing_premise": "The sizes of the singular values tell how important a matrix is.",
        "what_would_settle_it": "On GLUE, compare with the same budget spent uniformly.",
        "if_this_is_right": "Training time per step stays comparable to LoRA's.\nRanks differ between blocks.",
        "ledger": "0 free parameters\nNothing was chosen.",
        "significance": "Few parameters would be enough.",
    },
    major=(
        "The score is never compared with a random allocation or with gradient norms at the same budget.",
        "The schedule is not described.",
    ),
    minor=("Say how large the budget is.",),
    responses=("We have added a random control, and it is worse. revision: yes",),
    cited_by=("A later paper",),
    references=("An earlier paper",),
)


def imported(folder):
    """A project with an imported review and nothing else."""
    project = Project(folder / "project")
    project.write(IMPORTED_REVIEW, REVIEW, Made(by="import"))
    project.write("project.json", Settings(topic=REVIEW.title), Made(by="import"))
    return project
