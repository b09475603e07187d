"""Run ids are the keys of results stores: a config written before a field was added keeps its id."""

import pytest

from rankwise.experiments.schema import RunConfig

SEARCH = {"training.learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True}}
GOLDEN = {
    "lora-docstrings-s0-edd5f813e4": {},
    "glora-glue-rte-s3-2856000c43": {"seed": 3, "method": "glora", "task": "glue/rte"},
    "peft_adalora-files-s0-812fc60b2e": {
        "task": {"name": "files", "path": "x.csv", "text": ["a", "b"]},
        "method": {"name": "peft_adalora", "budget": "0.5%"},
        "training": {"epochs": 2, "learning_rate": 2e-4},
        "evaluation": {"metrics": ["f1", "accuracy"], "batch_size": 8},
    },
    "full-docstrings-s0-3ff2dfd2eb": {
        "method": "full",
        "model": {"name": "microsoft/deberta-v3-base", "revision": "main"},
        "training": {"max_steps": 7, "precision": "bf16", "save_every": 5},
        "sweep": {"n_trials": 3, "search_space": SEARCH},
    },
}


@pytest.mark.parametrize("run_id", GOLDEN)
def test_ids_from_before_the_holdout(run_id):
    """Computed before `evaluation.holdout` and the newer fields of `sweep` existed."""
    assert RunConfig.model_validate(GOLDEN[run_id]).run_id == run_id


def test_a_holdout_is_part_of_what_a_run_is():
    def run_id(**evaluation):
        return RunConfig.model_validate({"evaluation": evaluation}).run_id

    ids = [run_id(), run_id(holdout=0.1), run_id(holdout=0.2), run_id(holdout=0.1, holdout_seed=1)]
    assert len(set(ids)) == 4
    assert run_id(holdout_seed=7) == run_id()  # nothing is held out, so its seed decides nothing
