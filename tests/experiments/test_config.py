import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rankwise.errors import ConfigError
from rankwise.experiments import config as configs
from rankwise.experiments.config_docs import fill, schema_table
from rankwise.experiments.schema import RunConfig
from rankwise.experiments.yaml_text import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[2]
SCHEMA = Path(__file__).parents[1] / "data" / "schema.yaml"


@pytest.fixture
def written(tmp_path):
    """Write a YAML file and return its path."""

    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def errors(path, *overrides):
    return "\n".join(str(f) for f in configs.check(path, overrides).errors)


def load(path, *overrides):
    return configs.load(path, overrides).config


# --- the schema ---


def test_defaults_make_a_run():
    config = RunConfig()
    assert (config.model.name, config.task.name, config.method.name) == ("minilm", "docstrings", "lora")
    assert (config.training.max_steps, config.training.epochs, config.seed) == (300, None, 0)
    assert config.sweep is None


def test_a_file_loads_with_words_for_sections():
    config = load(SCHEMA)
    assert (config.model.name, config.task.name, config.task.train_examples) == ("minilm", "glue/sst2", 2000)
    assert (config.method.name, config.method.warmup, config.training.learning_rate) == ("glora", 50, 5e-4)


def test_config_is_frozen_and_refuses_unknown_fields():
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        RunConfig.model_validate({"seeed": 1})


def test_run_id_names_method_task_seed_and_hashes_all_but_the_sweep():
    config = load(SCHEMA)
    assert config.run_id.startswith("glora-glue-sst2-s3-")
    assert load(SCHEMA, "seed=4").run_id != config.run_id
    assert load(SCHEMA, "training.learning_rate=0.0005").run_id == config.run_id
    space = "sweep={n_trials: 3, search_space: {seed: {type: int, low: 0, high: 9}}}"
    tuned = load(SCHEMA, space)
    assert tuned.sweep.n_trials == 3
    assert tuned.run_id == config.run_id
    assert tuned.canonical() != config.canonical()
    in_new_process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from rankwise.experiments.config import load; print(load({str(SCHEMA)!r}).config.run_id)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert in_new_process.stdout.strip() == config.run_id


@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-9, 1e3),
    warmup=st.one_of(st.integers(0, 299), st.floats(0, 0.999)),
    budget=st.sampled_from(["r=4", "1e5", "200k", "144 ranks", "0.5%", "1_000", "12"]),
    metrics=st.sampled_from([None, ["accuracy"], ["matthews_corrcoef", "f1"]]),
    model=st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="$\x85"), min_size=1
    ),
)
def test_canonical_forms_round_trip(seed, rate, warmup, budget, metrics, model):
    config = RunConfig.model_validate(
        {
            "seed": seed,
            "model": {"name": model},
            "training": {"learning_rate": rate, "warmup": warmup},
            "method": {"name": "glora", "budget": budget},
            "evaluation": {"metrics": metrics},
        }
    )
    assert RunConfig.model_validate_json(config.canonical()) == config
    assert RunConfig.model_validate(parse_yaml(configs.to_yaml(config), "x").data) == config


def test_the_canonical_yaml_loads_to_the_same_run(written):
    loaded = configs.load(SCHEMA)
    again = configs.load(written(loaded.yaml))
    assert again.config == loaded.config
    assert again.yaml == loaded.yaml
    assert configs.from_dict(loaded.config.model_dump(mode="json")).config == loaded.config


def test_tasks_may_be_written_as_others_write_them(written):
    assert load(written("task: GLUE MNLI")).task.name == "glue/mnli"
    assert load(written("task: {name: glue_rte, max_length: 64}")).task.name == "glue/rte"
    files = load(written("task: some/reviews.csv")).task
    assert (files.name, files.path) == ("files", "some/reviews.csv")


# --- errors: all at once, each with its path ---


def test_every_error_is_reported_at_once(written):
    path = written(
        """
model: {nme: x}
tsak: glue/rte
method: {name: glora, warmup: 0, beta: 2, budgt: 3, floor: true, signal: esitmate}
training: {max_steps: "1e2", learning_rate: -1, schedule: lineer, batch_size: 1.5, epochs: 3, warmup: 1.0}
evaluation: {metrics: [acuracy], batch_size: .inf}
seed: abc
sweep: {search_space: {training.lr: {type: int, low: 3, high: 2}, method.beta: {type: loguniform}}}
"""
    )
    text = errors(path, "foo=3", "training.save_every=1,2", "a b", "~zzz", "+seed=3")
    for line in (
        "model.nme: unknown key, did you mean 'name'? Allowed in model: name, revision",
        "tsak: unknown key, did you mean 'task'?",
        "method.warmup: 0 must be a number of steps (whole, 1 or more) or a fraction of training (above 0, below 1)",
        "method.beta: 2 must be below 1",
        "method.budgt: unknown key, did you mean 'budget'?",
        "method.floor: 'true' must be a whole number",
        "method.signal: unknown signal 'esitmate', did you mean 'estimate'?",
        "training.max_steps: is 1e2 and training.epochs is 3; set one",
        "training.learning_rate: -1 must be above 0",
        "training.schedule: 'lineer' must be one of linear, cosine, constant, did you mean 'linear'?",
        "training.batch_size: 1.5 must be a whole number",
        "training.warmup: 1.0 must be a number of steps",
        "evaluation.metrics",
        "evaluation.batch_size: inf must be",
        "seed: 'abc' must be a whole number",
        "sweep.search_space.training.lr: no field 'training.lr'",
        "sweep.search_space.training.lr: low (3) must be below high (2)",
        "sweep.search_space.method.beta.type: 'loguniform' must be one of float, int, categorical",
        "foo: unknown key",
        "training.save_every: `training.save_every=1,2` gives several values",
        "cannot read the override `a b`",
        "zzz: `~zzz` deletes a key that the file does not have",
        "seed: `+seed=3` adds a key that the file has; write seed=3",
    ):
        assert line in text, f"{line}\n---\n{text}"
    with pytest.raises(ConfigError, match="problems"):
        configs.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: lroa", "method: unknown method 'lroa', did you mean 'lora'?"),
        ("method: 3", "method: must be a name or a mapping"),
        ("task: glue/sst3", "task: unknown task 'glue/sst3'"),
        ("task: {name: glue/rte, textt: a}", "task.textt: unknown key"),
        ("task: {name: files}", "task.path: is missing"),
        ("training: 3", "training: 3 must be a mapping"),
        ("training: {max_steps: null}", "training: exactly one of max_steps and epochs must be set, neither is"),
        ("seed: -1", "seed: -1 must be at least 0"),
        ("training: {batch_size: yes}", "training.batch_size: 'true' must be a whole number"),
        ("training: {learning_rate: .nan}", "training.learning_rate: nan must be"),
        ("training: {warmup: -1}", "training.warmup: -1 must be a number of steps"),
        ("model: {name: ''}", "model.name: '' must not be empty"),
        ("sweep: {search_space: {seed: {type: categorical}}}", "a categorical distribution has `choices`"),
        ("sweep: {search_space: {seed: {type: float, low: 0, high: 1, log: true}}}", "low (0) must be above 0"),
        ("sweep: {search_space: {seed: 3}}", "sweep.search_space.seed: 3 must be a mapping"),
        ("method: {name: glora, warmup: 300}", "method.warmup: 300 steps of a run of 300"),
    ],
)
def test_one_clear_message(written, text, message):
    assert message in errors(written(text))


def test_numbers_written_as_text_are_numbers(written):
    text = """
training: {max_steps: "1_000", learning_rate: 2e-4, weight_decay: "1e-2", warmup: "100", batch_size: 8.0}
method: {name: lora, budget: 200000, scaling: "1"}
seed: "7"
"""
    config = load(written(text))
    assert (config.training.max_steps, config.training.learning_rate) == (1000, 2e-4)
    assert (config.training.weight_decay, config.training.warmup, config.training.batch_size) == (0.01, 100, 8)
    assert (config.method.budget, config.method.scaling, config.seed) == ("200000", 1.0, 7)


# --- files ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "must be a mapping (`key: value` lines) at the top, this is a list"),
        (b"word", "this is one value ('word')"),
        (b"seed: 1\nmodel: {name: [}\n", "line 2, column 16: not YAML"),
        (b"training:\n\tmax_steps: 3\n", "line 2, column 1: not YAML"),
        (b"seed: 1\nseed: 2\n", "line 2, column 1: the key `seed` is there twice"),
        (b"training: {max_steps: 1, max_steps: 2}\n", "the key `max_steps` is there twice"),
        (b"1: a\n", "the key `1` is read as a int, keys must be words"),
        (b"on: a\n", "the key `on` is read as a bool"),
        (b"seed: 1\nmodel: \xff\n", "line 2: byte 0xff is not UTF-8"),
        (b"x: !!python/object/apply:os.system [ls]\n", "line 1, column 4: the tag !!python/object/apply:os.system"),
        (b"x: !mine 3\n", "the tag !mine builds an object"),
        (b"a: &a [*a]\n", "refers to itself"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d]\n", "holds more than 20,000 values"),
        (b"a: " + b"x" * 1_000_001, "a run config has at most"),
        (b"a: 1\n---\nb: 2\n", "line 2, column 1"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_config_says_why(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert message in errors(path)
    assert len(configs.check(path).errors) == 1


def test_a_file_that_is_not_there(tmp_path):
    assert errors(tmp_path / "absent.yaml") == "no such file"
    assert "is a folder" in errors(tmp_path)
    assert "cannot be read" in errors(tmp_path / "a\0b")
    with pytest.raises(ConfigError, match=r"absent\.yaml: 1 problem"):
        configs.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    "name", ["a.b=c--d,e.yaml", "no extension", "ünï {x} $y %z.yml", "~tilde.yaml", "-dash.yaml", "#.txt"]
)
def test_odd_names_and_folders(written, name, monkeypatch, tmp_path):
    path = written("seed: 5", f"odd [folder] = é/{name}")
    assert load(path).seed == 5
    monkeypatch.chdir(tmp_path / "odd [folder] = é")
    assert load(name, "seed=6").seed == 6


def test_folders_beside_the_file_are_not_taken_for_settings(written, tmp_path):
    for name in ("model", "training", "method"):
        (tmp_path / name).mkdir()
    config = load(
        written("model: {name: x}\nmethod: {name: lora}"), "model=minilm", "training.max_steps=4", "method=full"
    )
    assert (config.model.name, config.training.max_steps, config.method.name) == ("minilm", 4, "full")


def test_defaults_lists_are_composed(written):
    written("training: {max_steps: 11, batch_size: 4}\nseed: 1", "base.yaml")
    written("name: lora\nbudget: r=2", "method/small.yaml")
    written("name: glora\nbudget: r=8", "method/large.yaml")
    path = written("defaults: [base, {method: small}]\nseed: 2")
    config = load(path)
    assert (config.training.max_steps, config.training.batch_size, config.seed) == (11, 4, 2)
    assert (config.method.name, config.method.budget) == ("lora", "r=2")
    assert load(path, "method=large", "training.max_steps=3").method.budget == "r=8"
    assert "nowhere" in errors(written("defaults: [nowhere]\n"))


def test_interpolations_and_open_values(written):
    path = written("seed: 3\ntraining: {max_steps: '${seed}', batch_size: 2, save_every: '${training.batch_size}'}")
    assert (load(path).training.max_steps, load(path).training.save_every) == (3, 2)
    text = errors(written("seed: ${nowhere}\ntraining:\n  max_steps: ???\n  batch_size: ${oc.env:RANKWISE_NO_SUCH}"))
    assert "seed: `${nowhere}` cannot be resolved" in text
    assert "training.max_steps: is left open" in text
    assert "training.batch_size: `${oc.env:RANKWISE_NO_SUCH}` cannot be resolved" in text


def test_from_dict():
    assert configs.from_dict({"seed": 4}, ["training.max_steps=5"]).config.training.max_steps == 5
    with pytest.raises(ConfigError, match="seed: 'x' must be a whole number"):
        configs.from_dict({"seed": "x"})
    with pytest.raises(ConfigError):
        configs.from_dict({"seed": object()})


# --- overrides ---


def test_overrides_may_set_what_the_file_leaves_out(written):
    path = written("seed: 1")
    config = load(path, "training.save_every=10", "+evaluation.batch_size=8", "method.budget=r=2", "model.name=a b")
    assert (config.training.save_every, config.evaluation.batch_size) == (10, 8)
    assert (config.method.budget, config.model.name) == ("r=2", "a b")
    assert load(path, "evaluation.metrics=[accuracy,f1]").evaluation.metrics == ("accuracy", "f1")
    assert load(path, "~seed").seed == 0
    assert load(path, "model.name=größe").model.name == "größe"


@pytest.mark.parametrize("override", ["", "seed", "=3", "hydra.run.dir=x", "seed=[1", "a b=3"])
def test_overrides_that_say_nothing(override):
    assert f"`{override}`" in errors(SCHEMA, override)


def test_length_is_one_of_two(written):
    epochs = written("training: {epochs: 2}")
    loaded = configs.load(epochs, ["training.max_steps=9"])
    assert (loaded.config.training.max_steps, loaded.config.training.epochs) == (9, None)
    assert "gives way" in str(loaded.findings[0])
    assert load(SCHEMA, "training.epochs=1").training.max_steps is None
    assert load(epochs).training.epochs == 2
    assert "set one" in errors(epochs, "training.max_steps=9", "training.epochs=3")


def test_steps_of_the_file_keep_their_share(written):
    loaded = configs.load(SCHEMA, ["training.max_steps=100"])
    assert loaded.config.method.warmup == 0.1
    assert "method.warmup: 50 of the file's 500 steps -> 0.1 of the run (100 steps)" in map(str, loaded.findings)
    assert load(SCHEMA, "training.max_steps=100", "method.warmup=20").method.warmup == 20
    assert load(SCHEMA, "seed=9").method.warmup == 50
    assert "method.warmup" in errors(SCHEMA, "training.max_steps=100", "method.warmup=100")


def test_replacing_a_section_says_what_is_lost():
    loaded = configs.load(SCHEMA, ["method=lora"])
    assert loaded.config.method.budget == "r=4"
    assert any("without method.budget=r=4, method.warmup=50" in str(f) for f in loaded.findings)


def test_metrics_of_another_task_are_left_out_or_refused(written):
    path = written("task: glue/cola\nevaluation: {metrics: [matthews_correlation, accuracy]}")
    assert load(path).evaluation.metrics == ("matthews_correlation", "accuracy")
    moved = configs.load(path, ["task=glue/mnli"])
    assert moved.config.evaluation.metrics == ("accuracy",)
    assert any("matthews_correlation is left out" in str(f) for f in moved.findings if f.level == "warning")
    assert load(path, "task=glue/stsb").evaluation.metrics is None
    assert "pearson does not exist for task glue/cola" in errors(path, "evaluation.metrics=[pearson]")


# --- YAML and docs ---


@given(st.dictionaries(st.text("abcxyz_", min_size=1), st.one_of(st.text(), st.integers(), st.booleans(), st.none())))
@example({"a": "one\x85two", "b": "\u2028", "c": "\r"})
def test_dumped_yaml_reads_back(data):
    text = dump_yaml({**data, "fixed": ["1e5", "2e-4", "1_0.5", "true", "2020-01-01", 1e-5]})
    assert parse_yaml(text, "x").data == {**data, "fixed": ["1e5", "2e-4", "1_0.5", "true", "2020-01-01", 1e-5]}
    assert yaml.safe_load(text).keys() == parse_yaml(text, "x").data.keys()


def test_the_docs_tables_are_current():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert fill(text) == text, "run rankwise.experiments.config_docs.fill on docs/config.md"
    assert "`method.budget`" in schema_table()
    assert "None |" not in text


def test_reading_the_schema_does_not_import_torch():
    code = "import sys, rankwise.experiments.config; print('torch' in sys.modules, 'hydra' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_findings_are_plain_data():
    checked = configs.check(SCHEMA)
    assert checked.canonical == configs.load(SCHEMA).yaml
    assert json.loads(checked.config.canonical())["seed"] == 3
