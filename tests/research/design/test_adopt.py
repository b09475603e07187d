"""What a record's own run configs add to a design, and what of them is not fair; any words at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from research.design.hypotheses import ALLOCATION, LOCAL
from research.review.reviewed import REVIEW

from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.research.artefacts import Hypothesis
from rankwise.research.design_adopt import adopted, record_configs
from rankwise.research.design_controls import completed
from rankwise.research.design_draft import draft
from rankwise.research.design_review import draft_of_review
from rankwise.research.imported import Resource
from rankwise.research.project import Project

CONFIG = """
run_id: {role}-x
method: {role}
method_name: {name}
model: {{backbone: microsoft/deberta-v3-base}}
dataset: {{name: glue_mnli, batch_size: 16}}
training: {{epochs: 2, learning_rate: 3e-4, weight_decay: 0.05}}
{section}
optuna:
  n_trials: 5
  search_space:
    learning_rate: {{type: loguniform, low: 1.0e-4, high: 4.0e-4}}
    batch_size: {{type: categorical, choices: [16, 32]}}
"""
CONFIGS = {
    "a.yaml": CONFIG.format(role="proposed", name="GLoRA", section="glo_ra: {total_rank_budget: 576, beta_ema: 0.7}"),
    "b.yaml": CONFIG.format(role="comparative-1", name="AdaLoRA", section="adalora: {total_rank_budget: 576}"),
}


def test_training_and_fair_ranges_are_taken():
    found = adopted(draft(ALLOCATION), CONFIGS)
    assert found.training == {"epochs": 2, "batch_size": 16, "learning_rate": 3e-4, "weight_decay": 0.05} | {
        name: found.training[name] for name in ("schedule", "max_grad_norm")
    }
    (search,) = found.search
    assert (search.path, search.low, search.high, search.log) == ("training.learning_rate", 1e-4, 4e-4, True)
    notes = "\n".join(found.notes)
    assert "training.batch_size is not searched" in notes
    assert "the record's runs leave out glue/rte" in notes


def test_without_configs_nothing_changes():
    assert adopted(draft(ALLOCATION), {}) == draft(ALLOCATION)


def test_a_config_that_cannot_run_is_noted():
    found = adopted(draft(ALLOCATION), {"a.yaml": "method_name: [", "b.yaml": CONFIGS["b.yaml"]})
    assert "configs/a.yaml of the record cannot run" in "\n".join(found.notes)
    assert found.training["epochs"] == 2


def test_a_resource_that_is_another_dataset_is_noted():
    strange = Resource("dataset", "somebody/glue-mnli-copy", {"train": 7}, ("x", "y"))
    notes = "\n".join(adopted(draft(ALLOCATION), CONFIGS, (strange,)).notes)
    assert "7 training rows" in notes
    assert "columns x, y" in notes


def test_our_own_configs_are_no_record(tmp_path):
    project = Project(tmp_path)
    assert record_configs(project) == {}
    project.write_text("configs/a.yaml", CONFIGS["a.yaml"])
    project.write_text("configs/ours.yaml", "model: minilm\nmethod: lora\n")
    assert set(record_configs(project)) == {"a.yaml"}


def test_a_review_of_an_unknown_method():
    other = REVIEW.model_copy(update={"title": "ZZLoRA: a title"})
    with pytest.raises(UnknownNameError, match="ZZLoRA"):
        draft_of_review(other, base_model="minilm")
    found = draft_of_review(other, base_model="minilm", extra={"ZZLoRA": "adalora"})
    assert found.arms[0].method == {"name": "adalora"}


WORDS = st.text(max_size=200) | st.lists(
    st.sampled_from(
        [
            "GLoRA",
            "LoRA-8",
            "(RAD-LoRA)",
            "MNLI",
            "±",
            "2 %",
            "> LoRA",
            "r=",
            "lr",
            "1e-4",
            "seeds",
            "5",
            "∞",
            "\n",
            "Baselines:",
        ]
    ),
    max_size=30,
).map(" ".join)


@settings(max_examples=30)
@given(WORDS, WORDS, WORDS, WORDS)
def test_any_words_are_a_design_or_an_error(title, method, setup, expected):
    """Never a crash, and the same words are the same design."""
    said = LOCAL.model_copy(update={"title": title, "method": method, "experimental_setup": setup, "claims": ()})
    said = Hypothesis.model_construct(**said.model_dump() | {"expected_result": expected, "claims": ()})
    try:
        found = completed(draft(said))
    except RankwiseError:
        return
    assert any(arm.method["name"] == "lora" for arm in found.arms)
    assert len({claim.id for claim in found.claims}) == len(found.claims)
    assert completed(draft(said)) == found
