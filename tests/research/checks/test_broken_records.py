"""Known defects of papers, run configs, designs as text, answers and reviews, each put into a repaired record."""

from dataclasses import replace

import pytest
from research.checks.judged import changed, numbers, repaired, with_hypothesis

from rankwise.research.artefacts import Paper, Statement
from rankwise.research.checks import check_configs, check_papers, check_record, check_review

DIALECT = """run_id: proposed-m--t
method: proposed
method_name: GLoRA
model: {backbone: microsoft/deberta-v3-base, num_parameters: 86M, peft: {type: lora, init_rank: 8}}
dataset: {name: glue_mnli, batch_size: 32}
training: {epochs: 3, learning_rate: 3e-4, lr_warmup_steps: 500}
glo_ra: {total_rank_budget: 100, warmup_steps: 9000}
evaluation: {metrics: [accuracy, matthews_corrcoef]}
hardware: {gpu_type: a100}
optuna:
  n_trials: 40
  metric: validation_accuracy
  search_space:
    warmup_steps: {type: int, low: 10, high: 90}
    total_rank_budget: {type: categorical, choices: [72, 144]}
    batch_size: {type: categorical, choices: [16, 64]}
    beta_ema: {type: uniform, low: 0.5, high: 0.9}
"""
PEER = """run_id: comparative-m--t
method: comparative-1
method_name: AdaLoRA
model: {backbone: microsoft/deberta-v3-base, peft: {type: adalora, init_rank: 8}}
dataset: {name: glue_mnli, batch_size: 32}
training: {epochs: 3, learning_rate: 3e-4}
adalora: {total_rank_budget: 100, beta1: 0.5, orth_reg_weight: 0.0001}
optuna:
  n_trials: 5
  metric: accuracy
  search_space:
    learning_rate: {type: loguniform, low: 0.0001, high: 0.001}
"""
DESIGN = (
    "comparative_methods=['AdaLoRA'] datasets_to_use=['MNLI'] hyperparameters_to_search={'lr (all)': '1e-5-1e-3', "
    "'rank': '2,4'} The budget is num_layers x 4. One A100. datasets=[R(id='someone/nli-copy', readme='features:\\n"
    "  - name: a\\n    dtype: string\\n  splits:\\n  - name: train\\n    num_examples: 5000\\n')]"
)


@pytest.mark.parametrize("number", [32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 48, 50, 51])
def test_broken_run_configs(number):
    assert number in numbers(check_configs({"a": DIALECT, "b": PEER}))


def test_a_config_that_does_not_load_is_said():
    (found,) = [one for one in check_configs({"bad": "method: {name: lora, bugdet: r=4}"}) if one.level == "error"]
    assert found.rule == "config_check"
    assert "bugdet" in found.where + found.message
    assert found.where.startswith("configs.bad")


@pytest.mark.parametrize("number", [32, 33, 35, 47, 48, 49])
def test_a_broken_design(number):
    record = repaired("configs")
    setup = (
        "Model: DeBERTa-v3-base. Tasks: MNLI, RTE.\nBaselines: LoRA, AdaLoRA.\nmatrices x 4, 5 seeds, one "
        "V100.\nMetrics: accuracy, wall-clock time."
    )
    broken = with_hypothesis(record, changed(record.rounds[-1].hypothesis, experimental_setup=setup))
    found = check_record(replace(broken, design_text=DESIGN, configs={}))
    assert number in numbers(one for one in found if one.where in ("design_text", "configs"))


def test_rows_and_columns_are_told():
    texts = " ".join(one.message for one in check_record(replace(repaired("configs"), design_text=DESIGN)))
    assert "5,000 training rows, and glue/mnli has 392,702" in texts
    assert "columns a lack premise, hypothesis, label" in texts


def test_a_python_repr_and_rounds_without_feasibility():
    record = repaired("refinement")
    assert 63 in numbers(check_record(replace(record, answer_form="python")))
    silent = tuple(replace(one, novelty_text="New.", significance_text="Useful.") for one in record.rounds)
    assert 82 in numbers(check_record(replace(record, rounds=silent)))


def test_papers():
    def paper(name, title, said="fine-tuning of language models", **more):
        return Paper(id=name, title=title, contributions=(Statement(text=said),), **more)

    same = check_papers([paper("a", "Adapters for all: a study"), paper("b", "Adapters for All - A Study")])
    assert numbers(same) == {83}
    near = check_papers(
        [paper("a", "Low-rank adapters of transformers"), paper("b", "Low-rank adapters of transformer")]
    )
    assert numbers(near) == {83}
    other = check_papers(
        [paper("a", "Adapters one"), paper("b", "Adapters two"), paper("c", "Growing plants", "reinforcement learning")]
    )
    assert [one.where for one in other] == ["papers.c"]
    assert check_papers([paper("a", "Adapters and prompts"), paper("b", "Adapters and prefixes")]) == ()
    code = check_papers(
        [paper("a", "Adapters", code="x = 1\n" * 3000, result="The method is not present in this code.")]
    )
    assert numbers(code) == {23, 83}


def broken_review(**sections):
    review = repaired("review").review
    parts = {"responses": review.responses, "major": review.major}
    given = {name: sections.pop(name) for name in tuple(sections) if name in parts}
    return review.model_copy(update={"sections": {**review.sections, **sections}, **parts, **given})


REVIEWS = [
    (
        84,
        {"load_bearing_premise": "The sizes of the singular values decide what is kept."},
    ),
    (85, {"responses": ("We ran three more seeds, and the new results confirm the claim.",)}),
    (86, {"ledger": "no free parameters"}),
    (87, {"major": ("The abstract claims gains but gives no numbers.",)}),
    (88, {"if_this_is_right": "Training cost stays similar to plain LoRA."}),
    (89, {"what_would_settle_it": "If uniform LoRA equals it on all tasks, the claim fails."}),
    (89, {"what_would_settle_it": "Run both and compare the averages."}),
]


@pytest.mark.parametrize(("number", "sections"), REVIEWS)
def test_a_broken_review(number, sections):
    found = check_review(broken_review(**sections), repaired("review").papers)
    assert numbers(found) == {number}


def test_the_truth_comes_from_the_papers_entry():
    said = {"core_claim": "Singular value magnitudes decide what is pruned."}
    (found,) = check_review(broken_review(**said), repaired("review").papers)
    assert "smoothed sensitivity times uncertainty" in found.message
    assert "zhang-2023-adalora" in found.message
    (alone,) = check_review(broken_review(**said))
    assert "sensitivity" in alone.message


def test_free_parameters_are_those_of_our_config():
    from rankwise.experiments.schema import method_registry

    (found,) = check_review(broken_review(ledger="0 free parameters"), repaired("review").papers)
    fields = method_registry()["adalora"].model_fields
    for name in ("warmup", "final", "every", "beta1", "beta2", "initial_ratio", "orthogonality", "budget"):
        assert name in fields
        assert name in found.message


def test_a_response_that_cites_a_run_stands():
    kept = broken_review(responses=("We repeated it: run lora-docstrings-s3-0123456789 has 0.81.",))
    assert check_review(kept, repaired("review").papers) == ()
