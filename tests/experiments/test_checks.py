import re
from pathlib import Path

import pytest
from tiny import tiny_model

from rankwise.errors import ConfigError
from rankwise.experiments.checks import Named, check_config, check_together, total_steps
from rankwise.experiments.config import check, load
from rankwise.experiments.config import check_together as check_files
from rankwise.experiments.import_record import write_run_configs
from rankwise.experiments.schema import RunConfig

RECORD = Path(__file__).parents[1] / "data" / "record.txt"
BOTH = {34, 35, 36, 37, 40, 41, 42, 43, 44, 45, 46, 48, 50, 51}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_run_configs(RECORD, tmp_path_factory.mktemp("record"))


def items(findings):
    return {int(n) for f in findings for n in re.findall(r"\[(\d+)\]$", f.message)}


def config(**sections):
    return RunConfig.model_validate({"task": "glue/rte", **sections})


def said(made, level=None):
    return [str(f) for f in check_config(made) if level in (None, f.level)]


def test_every_contradiction_of_the_record_is_found_and_it_loads(files):
    proposed, comparative = check(files[0]), check(files[1])
    assert items(proposed.findings) == BOTH
    assert items(comparative.findings) == BOTH | {38, 39}
    assert items(check_files([proposed, comparative])) == {32, 33, 45}
    assert not proposed.errors
    assert not comparative.errors


@pytest.mark.parametrize(
    ("file", "path", "words"),
    [
        (0, "glo_ra.warmup_steps", "12000 steps lies outside its own search range (500 to 1500) [34]"),
        (0, "glo_ra.warmup_steps", "98% of an epoch of 12,272, 33% of the run of 36,816"),
        (0, "glo_ra.warmup_steps", "65% of 18,408 steps at batch size 64 [37]"),
        (1, "adalora.adaptation_start_step", "12000 steps lies outside its own search range (500 to 1500) [34]"),
        (0, "glo_ra.total_rank_budget", "128 ranks over 72 matrices are 1.78 each"),
        (0, "glo_ra.total_rank_budget", "layers x init_rank = 96, matrices x init_rank = 576"),
        (1, "adalora", "tfinal, deltaT, total_step"),
        (1, "adalora.orth_reg_weight", "1,000 times below PEFT's default 0.5"),
        (1, "adalora.beta2", "0.99 differs from the paper's"),
        (0, "training.learning_rate", "2e-4 is text to plain YAML readers"),
        (0, "model.num_parameters", "the model has 183.8M [42]"),
        (0, "optuna.metric", "'validation_accuracy' is not among evaluation.metrics"),
        (0, "optuna.n_trials", "25 trials x 36,816 steps = 920,400 steps = 75 passes over glue/mnli"),
        (0, "optuna.search_space.batch_size", "holds it fixed [36]"),
        (1, "optuna.search_space.orth_reg_weight.type", "'loguniform' is not a word of Optuna"),
        (0, "model.peft.type", "'lora' does not select GLoRA"),
        (1, "method", "'comparative-1' is a role in the record"),
    ],
)
def test_messages_show_the_numbers_in_the_files_words(files, file, path, words):
    assert any(f.path == path and words in f.message for f in check(files[file]).findings)


def test_mended_files_have_fewer_findings(files):
    mended = [
        "seed=1",
        "~optuna",
        "~hardware",
        "~run_id",
        "evaluation.metrics=[accuracy]",
        "model.num_parameters=183.8M",
        "glo_ra.warmup_steps=1000",
        "glo_ra.total_rank_budget=576",
        "training.learning_rate=0.0002",
    ]
    checked = check(files[0], mended)
    assert items(checked.findings) == {42, 44, 51}  # the suffix M is still text


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"training": {"max_steps": 30, "warmup": 30}}, "training.warmup"),
        ({"training": {"max_steps": 30}, "method": {"name": "glora", "warmup": 30}}, "method.warmup"),
        ({"training": {"max_steps": 30}, "method": {"name": "peft_adalora", "final": 40}}, "method.final"),
        (
            {"training": {"max_steps": 30}, "method": {"name": "peft_adalora", "warmup": 0.5, "final": 0.6}},
            "method.warmup, method.final",
        ),
        ({"method": {"name": "lora", "budget": "lots"}}, "method.budget"),
        ({"method": {"name": "lora", "budget": "20 ranks"}}, "method.budget"),
        ({"evaluation": {"metrics": ["pearson"]}}, "evaluation.metrics"),
        ({"sweep": {"metric": "f1"}}, "sweep.metric"),
    ],
)
def test_what_cannot_run_is_an_error(sections, path):
    errors = [f for f in check_config(config(**sections)) if f.level == "error"]
    assert [f.path for f in errors] == [path]


def test_a_plain_config_has_no_findings():
    assert check_config(RunConfig()) == ()
    assert said(config(method={"name": "peft_adalora"})) == []
    assert said(config(method={"name": "lora", "budget": "36 ranks"})) == []


def test_the_length_of_a_run_is_known_where_the_number_of_examples_is():
    assert total_steps(config(training={"max_steps": 7})) == 7
    assert total_steps(config(training={"epochs": 2, "batch_size": 16})) == 2 * 156
    assert total_steps(config(training={"epochs": 0.5, "batch_size": 16, "gradient_accumulation_steps": 3})) == 26
    capped = {"name": "glue/rte", "train_examples": 100}
    assert total_steps(config(task=capped, training={"epochs": 1, "batch_size": 10})) == 10
    assert total_steps(RunConfig.model_validate({"training": {"epochs": 1}})) is None


def test_values_inside_their_range_are_fine():
    space = {"training.learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    assert said(config(sweep={"search_space": space})) == []
    assert (
        "outside its own search range"
        in said(config(training={"learning_rate": 0.1}, sweep={"search_space": space}))[0]
    )


def test_arms_that_belong_together():
    lora = config(method={"name": "lora", "budget": "r=4"}, seed=0)
    glora = config(method={"name": "glora", "budget": "r=4"}, seed=1, task="glue/sst2")
    assert check_together([Named("a", lora)]) == ()
    assert check_together([Named("a", lora), Named("b", glora)]) == ()
    other = config(method={"name": "glora", "budget": "r=8"}, seed=1, task="glue/sst2", training={"batch_size": 8})
    found = check_together([Named("a", lora), Named("b", other)])
    assert [f.path for f in found] == ["method.budget", "training.batch_size"]
    assert "a: r=4; b: r=8" in found[0].message


def test_arms_that_are_tuned_unequally():
    def tuned(trials, high):
        space = {"training.learning_rate": {"type": "float", "low": 1e-4, "high": high}}
        return config(sweep={"n_trials": trials, "search_space": space}, seed=trials)

    found = check_together([Named("a", tuned(5, 1e-2)), Named("b", tuned(9, 1e-1))])
    assert {f.path for f in found} >= {"sweep.n_trials", "sweep.search_space.training.learning_rate"}


def test_faulty_files_are_passed_over_together(files, tmp_path):
    faulty = check(tmp_path / "absent.yaml")
    assert check_files([faulty, load(files[0])]) == ()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ({"name": "glora", "signal": "sensitivity", "every": 1, "warmup": 1, "until": 20, "floor": 0}, "method.until"),
        ({"name": "glora", "signal": "variance", "warmup": 1}, "method"),
        ({"name": "glora", "smoothing": 0.5}, "method"),
    ],
)
def test_what_a_method_cannot_do_is_found_beforehand(method, path):
    made = config(method=method, training={"max_steps": 10})
    assert any(text.startswith(path) for text in said(made, "error"))
    with pytest.raises(ConfigError):
        made.method.build(tiny_model(), total_steps=10, seed=0)
