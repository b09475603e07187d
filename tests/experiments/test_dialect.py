from pathlib import Path

import pytest

from rankwise.experiments.config import check, load
from rankwise.experiments.dialect import is_dialect, translate
from rankwise.experiments.import_record import write_run_configs
from rankwise.experiments.model_facts import model_facts

RECORD = Path(__file__).parents[1] / "data" / "record.txt"
SMALL = ["model=minilm", "dataset.name=glue_rte", "training.max_steps=30"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The record's two configs: (proposed, comparative)."""
    return write_run_configs(RECORD, tmp_path_factory.mktemp("record"))


def messages(checked, level=None):
    return "\n".join(str(f) for f in checked.findings if level in (None, f.level))


def test_the_proposed_config_loads_as_it_stands(files):
    loaded = load(files[0])
    config = loaded.config
    assert config.model.name == "microsoft/deberta-v3-base"
    assert (config.task.name, config.task.max_length) == ("glue/mnli", 256)
    assert (config.method.name, config.method.budget) == ("glora", "128 ranks")
    assert (config.method.warmup, config.method.beta) == (12_000, 0.9)
    training = config.training
    assert (training.max_steps, training.epochs, training.batch_size, training.warmup) == (None, 3, 32, 1000)
    assert (training.learning_rate, training.weight_decay) == (2e-4, 0.01)
    assert config.evaluation.metrics == ("accuracy",)
    assert loaded.label == "proposed-DeBERTa-v3-base-86M--GLUE-MNLI"
    assert not [f for f in loaded.findings if f.level == "error"]
    assert f"'{loaded.label}' is kept as a label" in messages(loaded, "note")


def test_the_search_space_is_resolved_to_full_paths(files):
    sweep = load(files[0]).config.sweep
    assert (sweep.n_trials, sweep.direction, sweep.metric) == (25, "maximize", "accuracy")
    space = sweep.search_space
    assert list(space) == [
        "training.learning_rate",
        "method.beta",
        "method.budget",
        "method.warmup",
        "training.batch_size",
    ]
    assert (space["training.learning_rate"].type, space["training.learning_rate"].log) == ("float", True)
    assert (space["method.beta"].type, space["method.beta"].log) == ("float", False)
    assert space["method.budget"].choices == ("96 ranks", "128 ranks", "160 ranks")
    assert (space["method.warmup"].low, space["method.warmup"].high) == (500, 1500)


def test_the_comparative_config_is_peft_adalora(files):
    method = load(files[1]).config.method
    assert (method.name, method.budget, method.warmup) == ("peft_adalora", "128 ranks", 12_000)
    assert (method.beta1, method.beta2, method.orthogonality) == (0.9, 0.99, 5e-4)
    assert method.initial_ratio == 4.5  # 8 x 72 matrices over 128


def test_overrides_make_it_a_config_that_runs_here(files):
    loaded = load(files[0], SMALL)
    config = loaded.config
    assert (config.model.name, config.task.name) == ("minilm", "glue/rte")
    assert (config.training.max_steps, config.training.epochs) == (30, None)
    assert config.method.warmup == pytest.approx(12_000 / 36_816, abs=1e-6)
    assert config.training.warmup == pytest.approx(1_000 / 36_816, abs=1e-6)
    assert config.sweep.search_space["method.warmup"].low == pytest.approx(500 / 36_816, abs=1e-6)
    notes = messages(loaded, "note")
    assert "training.epochs: 3 of the file gives way to training.max_steps=30" in notes
    assert "glo_ra.warmup_steps: 12000 of the file's 36,816 steps -> 0.326 of the run (30 steps)" in notes
    assert "matthews_corrcoef is left out: task glue/rte has accuracy" in messages(loaded, "warning")


def test_overridden_steps_are_taken_as_they_are(files):
    config = load(files[0], [*SMALL, "glo_ra.warmup_steps=7", "training.lr_warmup_steps=2"]).config
    assert (config.method.warmup, config.training.warmup) == (7, 2)


def test_an_overridden_warmup_longer_than_training_is_an_error(files):
    checked = check(files[0], [*SMALL, "glo_ra.warmup_steps=30"])
    assert "glo_ra.warmup_steps: 30 steps of a run of 30: ranks would never be reallocated" in messages(
        checked, "error"
    )


def test_a_replaced_model_keeps_what_the_file_says_about_the_adapter(files):
    loaded = load(files[1], SMALL)
    assert loaded.config.model.name == "minilm"
    assert loaded.config.method.initial_ratio == 2.25  # 8 x 36 matrices over 128
    lora = load(files[0], [*SMALL, "method_name=LoRA"]).config
    assert (lora.method.name, lora.method.budget) == ("lora", "r=8")


def test_our_own_names_are_allowed_in_the_sections(files):
    more = ["glo_ra.signal=exact", "dataset.train_examples=100", "training.precision=bf16", "seed=4", "glo_ra.floor=0"]
    config = load(files[0], [*SMALL, *more]).config
    assert (config.method.signal, config.method.floor, config.seed) == ("exact", 0, 4)
    assert (config.task.train_examples, config.training.precision) == (100, "bf16")


def test_errors_use_the_files_words(files):
    bad = [
        "glo_ra.beta_em=0.5",
        "glo_ra.beta_ema=1.5",
        "dataset.batch_size=0",
        "dataset.nme=x",
        "training.lr_warmup_stps=3",
        "training.optimizer=sgd",
        "hardwear=x",
        "evaluation.batch_size=[1]",
        "evaluation.metrics=[acuracy]",
    ]
    text = messages(check(files[0], bad), "error")
    assert "glo_ra.beta_em: unknown key, did you mean 'beta_ema'?" in text
    assert "glo_ra.beta_ema: 1.5 must be below 1" in text
    assert "dataset.batch_size: 0 must be at least 1" in text
    assert "dataset.nme: unknown key, did you mean 'name'?" in text
    assert "training.lr_warmup_stps: unknown key, did you mean 'lr_warmup_steps'?" in text
    assert "training.optimizer: 'sgd' must be adamw" in text
    assert "hardwear: unknown key, did you mean 'hardware'?" in text
    assert "evaluation.metrics" in text
    assert "did you mean 'accuracy'?" in text
    assert text.count("\n") == len(bad) - 1


@pytest.mark.parametrize("section", ["training", "glo_ra", "evaluation", "optuna", "model.peft", "optuna.search_space"])
@pytest.mark.parametrize("value", ["3", "[1]", "null", "word"])
def test_sections_that_are_none_are_said_and_never_crash(files, section, value):
    checked = check(files[0], [f"{section}={value}"])
    if value != "null":
        wrong = "mixes a list with a mapping" if value == "[1]" else "must be a mapping"
        assert any(f.path == section and wrong in f.message for f in checked.errors)
    assert checked.config is not None or checked.errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method_name=GLoRAX", "method_name: 'GLoRAX' is not a method, did you mean 'glora'?"),
        ("~method_name", "method_name: is missing and `method: proposed` is a role, not a method"),
    ],
)
def test_a_method_that_is_none_is_named(files, override, message):
    assert message in messages(check(files[0], [override]), "error")


def test_the_search_space_names_one_field_or_is_refused():
    base = {"method_name": "LoRA", "dataset": "glue_rte", "training": {"max_steps": 9}, "seed": 0}
    spread = {"type": "int", "low": 1, "high": 2}

    def resolved(leaf, **more):
        out = translate({**base, **more, "optuna": {"search_space": {leaf: spread}}})
        return list(out.data["sweep"]["search_space"]), [f.message for f in out.findings if f.level == "error"]

    assert resolved("batch_size", dataset={"name": "glue_rte", "batch_size": 4}) == (["training.batch_size"], [])
    assert resolved("learning_rate") == (["training.learning_rate"], [])
    assert resolved("training.learning_rate") == (["training.learning_rate"], [])
    assert resolved("save_every") == (["training.save_every"], [])
    found, errors = resolved("lerning_rate")
    assert not found
    assert "did you mean 'learning_rate'?" in errors[0]
    found, errors = resolved("warmup", method_name="GLoRA")
    assert not found
    assert "could mean method.warmup or training.warmup; write the full path" in errors[0]
    assert resolved("method.warmup", method_name="GLoRA") == (["method.warmup"], [])


def test_two_words_for_one_field_are_an_error_unless_one_is_an_override():
    training = {"max_steps": 9, "lr_warmup_steps": 1, "warmup": 2}
    data = {"method_name": "LoRA", "dataset": {"name": "glue_rte"}, "training": training}
    findings = translate(data).findings
    assert any("say the same thing (training.warmup)" in f.message for f in findings if f.level == "error")
    out = translate(data, data, lambda path: path == "training.warmup")
    assert out.data["training"]["warmup"] == 2
    assert not [f for f in out.findings if f.level == "error"]


def test_only_files_with_words_of_the_dialect_are_read_in_it():
    assert is_dialect({"dataset": {}})
    assert is_dialect({"model": {"backbone": "x"}})
    assert not is_dialect({"task": "glue/rte", "run_id": "x"})
    assert not is_dialect({"model": "minilm", "method": "lora"})
    assert not is_dialect({})


def test_known_models_are_found_by_the_end_of_their_name():
    facts = model_facts("microsoft/deberta-v3-base")
    assert (facts.layers, facts.hidden_size, facts.matrices) == (12, 768, 72)
    # Embeddings: 128,100 words x 768 and one layer norm.
    assert facts.parameters - facts.backbone == 128_100 * 768 + 2 * 768
    assert model_facts("minilm").parameters == 22_713_216
    assert model_facts("someone/else") is None
