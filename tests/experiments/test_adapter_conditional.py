"""`export`, `inspect` and `truncate` on adapters that decide per input, and their runs from start to end."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.decisions import decisions_of
from rankwise.errors import ConfigError, DataError, ModelError, OutputError
from rankwise.experiments.adapter_commands import ExportOptions, export, inspect, truncate
from rankwise.experiments.adapter_source import Choice
from rankwise.experiments.commands import CompareOptions, compare, report
from rankwise.experiments.markdown import results_markdown
from rankwise.experiments.store import Store
from rankwise.training.fit import fit

pytestmark = pytest.mark.filterwarnings("ignore")
VARIANTS = {
    "cogalora": ("cogalora", {}),
    "cogalora-shared": ("cogalora", {"router": "shared"}),
    "radlora": ("radlora", {}),
    "radlora-hyper": ("radlora", {"generator": "hyper", "generator_rank": 3}),
    "radlora-block": ("radlora", {"depth": "block"}),
}
KINDS = {"cogalora": "COGALORA", "radlora": "RADLORA"}
STEPS = 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Variant -> (method after training, its checkpoint, its static form); the base model lies beside them."""
    folder, done = tmp_path_factory.mktemp("trained"), {}
    tiny_model(num_hidden_layers=3).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")

    def make(key):
        if key not in done:
            name, fields = VARIANTS[key]
            base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
            method = build(name, base, total_steps=STEPS, budget="r=8", **fields)
            fit(method, tiny_tokenizer(), tiny_data(40), {}, settings(total_steps=STEPS), work_dir=folder / "work")
            method.check_finished = lambda: None  # so short a training may end beside its target
            method.export(folder / key)
            method.export(folder / f"{key}-static", "static")
            method.model.eval()
            done[key] = method, folder / key, folder / f"{key}-static"
        return done[key]

    return make


def kind_of(key):
    return "RADBLOCK" if key == "radlora-block" else KINDS[VARIANTS[key][0]]


def options(source, output, form="compact", **fields):
    return ExportOptions(str(source), form, output, **fields)


def loaded(folder, base):
    return PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), folder)


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", VARIANTS)
def test_compact_is_the_adapter_itself(trained, tmp_path, key):
    method, folder, _ = trained(key)
    answer = export(options(folder, tmp_path / "out"))
    assert torch.equal(logits(loaded(tmp_path / "out", folder.parent / "base")), logits(method.model))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config == json.loads((folder / "adapter_config.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert answer.data["parameters"] == method.parameter_count().final
    assert answer.lines[0].startswith(f"{kind_of(key)}, ")
    with pytest.raises(OutputError, match="exists and is not empty"):
        export(options(folder, tmp_path / "out"))


@pytest.mark.parametrize("key", VARIANTS)
def test_static_from_a_checkpoint_is_what_the_method_writes(trained, tmp_path, key):
    _, folder, static = trained(key)
    answer = export(options(folder, tmp_path / "out", "static"))
    expected = load_file(static / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert max(float(value.abs().max()) for name, value in expected.items() if "lora_B" in name) > 0
    one, other = (loaded(path, folder.parent / "base") for path in (tmp_path / "out", static))
    torch.testing.assert_close(logits(one), logits(other), rtol=0, atol=1e-5)
    assert "another model than the one that was measured" in answer.lines[1]
    export(options(tmp_path / "out", tmp_path / "merged", "merged"))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", VARIANTS)
@pytest.mark.parametrize("form", ["uniform", "merged"])
def test_other_forms_are_refused_with_the_reason(trained, tmp_path, key, form):
    _, folder, _ = trained(key)
    reason = rf"'{form}' is not possible: {kind_of(key)} adapters decide per input.*Write --form static first"
    with pytest.raises(ConfigError, match=reason):
        export(options(folder, tmp_path / "out", form))
    assert not (tmp_path / "out").exists()


def test_static_needs_to_know_what_is_average(trained, tmp_path):
    for key, field in (("cogalora", "usage"), ("radlora", "components")):
        folder = tmp_path / key
        shutil.copytree(trained(key)[1], folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {field: None}))
        with pytest.raises(
            ConfigError, match=r"'static' is not possible: the config does not say how often the adapter of bert"
        ):
            export(options(folder, tmp_path / "out", "static"))
        answer = inspect(str(folder), Choice())
        if field == "usage":
            assert answer.data["share_open"] is None
            assert any("how often is not in the checkpoint" in line for line in answer.lines)
            export(options(folder, tmp_path / "compact"))
            assert "How often that is was not measured." in (tmp_path / "compact" / "README.md").read_text()
    assert not (tmp_path / "out").exists()


def test_static_of_shared_banks_needs_the_base_models_shapes(trained, tmp_path):
    folder = tmp_path / "radlora"
    shutil.copytree(trained("radlora")[1], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(ConfigError, match=r"needs the base model's shapes, which are not at hand .* with --model"):
        export(options(folder, tmp_path / "out", "static"))
    base = trained("radlora")[1].parent / "base"
    export(options(folder, tmp_path / "out", "static", model=str(base)))
    tiny_model(intermediate_size=48, num_hidden_layers=3).save_pretrained(tmp_path / "other")
    with pytest.raises(DataError, match="needs a bank of outputs of width 48, which is not in the file"):
        export(options(folder, tmp_path / "no", "static", model=str(tmp_path / "other")))


@pytest.mark.parametrize("first", [-1, 10**6, "a", 1.0])
def test_static_of_a_window_outside_of_its_bank_is_refused(trained, tmp_path, first):
    folder = tmp_path / "radlora"
    shutil.copytree(trained("radlora")[1], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    name = sorted(config["windows"])[0]
    config["windows"][name] = [0, first]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=rf"the window of {name} begins at {first!r}; its bank has components 0 to "):
        export(options(folder, tmp_path / "out", "static"))
    assert not (tmp_path / "out").exists()


def test_static_of_what_decides_nothing_is_compact(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    method = build("lora", AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"))
    for layer in adapted_layers(method.model).values():
        torch.nn.init.normal_(layer.lora_B[ADAPTER].weight)
    method.export(tmp_path / "lora")
    for form in ("compact", "static"):
        export(options(tmp_path / "lora", tmp_path / form, form))
    one, other = (load_file(tmp_path / form / "adapter_model.safetensors") for form in ("compact", "static"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "static/README.md").read_text() == (tmp_path / "compact/README.md").read_text()


def test_another_name_for_the_base_model(trained, tmp_path):
    _, folder, _ = trained("cogalora")
    export(options(folder, tmp_path / "out", model="org/model"))
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/model", None)
    assert written["peft_type"].startswith("COGALORA (needs the package rankwise")


# --- card ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [k if k == "radlora-block" else pytest.param(k, marks=pytest.mark.slow) for k in VARIANTS]
)
@pytest.mark.slow
def test_card_says_what_it_needs_and_its_code_works(trained, tmp_path, key):
    """The code is run in a process of its own, where nothing of rankwise was imported before."""
    method, folder, _ = trained(key)
    export(options(folder, tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Needs `pip install rankwise`, and `import rankwise` before it is loaded." in text
    shares = list(method.peft.usage.values())
    assert f"On training examples {sum(shares) / len(shares):.1%} of the decisions were open." in text
    assert "`rankwise export path/to/this/folder --form static --output path/to/plain/lora`" in text
    assert f"PEFT type {kind_of(key)} of the package rankwise, which decides per input" in text
    assert str(tmp_path) not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace("path/to/this/folder", str(tmp_path / "out"))
    code = code.replace("path/to/the/base/model", str(folder.parent / "base"))
    torch.save({name: value for name, value in batch().items() if name != "labels"}, tmp_path / "inputs.pt")
    code += (
        "\nimport torch\nwith torch.no_grad():\n"
        f"    found = model.eval()(**torch.load('{tmp_path}/inputs.pt')).logits\n"
        f"torch.save(found, '{tmp_path}/logits.pt')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(method.model), rtol=0, atol=1e-5)


def test_card_of_the_static_form_says_what_it_was(trained, tmp_path):
    _, folder, _ = trained("cogalora")
    export(options(folder, tmp_path / "out", "static"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "plain LoRA made of a COGALORA adapter" in text
    assert "every gate stands at its average over training examples" in text
    assert "import rankwise" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert code.startswith("from peft import PeftModel")


# --- inspect and truncate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", VARIANTS)
def test_inspect_agrees_with_the_living_model(trained, tmp_path, key):
    method, folder, _ = trained(key)
    answer = inspect(str(folder), Choice(), tmp_path / "plot.png")
    data = answer.data
    assert (data["kind"], data["threshold"]) == (kind_of(key), method.peft.threshold)
    assert data["parameters"] == method.parameter_count().final
    assert {name: row["rank"] for name, row in data["modules"].items()} == method.rank_pattern()
    assert data["usage"] == pytest.approx(method.peft.usage)
    assert data["share_open"] == pytest.approx(sum(method.peft.usage.values()) / len(method.peft.usage))
    factors = (f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight")
    plain = sum(p.numel() for name, p in method.model.named_parameters() if name.endswith(factors))
    assert data["parameters_beside"] == data["parameters"] - plain
    for name, layer in adapted_layers(method.model).items():
        row = data["modules"][name]
        assert row["scaling"] == pytest.approx(layer.scaling[ADAPTER])
        if not key.startswith("radlora") or key == "radlora-block":
            delta = (
                layer.lora_B[ADAPTER].weight.double() @ layer.lora_A[ADAPTER].weight.double() * layer.scaling[ADAPTER]
            )
            assert row["norm"] == pytest.approx(float(delta.norm()), rel=1e-4)
        if key != "radlora-block":
            assert row["open"] == pytest.approx(method.peft.usage[name])
    assert not any(verdict["right"] for verdict in data["servers"].values())
    assert f"peft_type {kind_of(key)} is not LORA" in data["servers"]["vLLM"]["problems"][0]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("key", VARIANTS)
def test_decisions_are_at_most_the_rank_and_what_training_measured(trained, key):
    """`usage` was measured on the first training examples; the same ones give the same shares here."""
    method, _, _ = trained(key)
    data = tiny_data(40)
    rows = [{name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")} for row in data]
    found = decisions_of(method.model, rows)
    assert found.kind == ("blocks" if key == "radlora-block" else "modules")
    assert (found.ranks <= torch.tensor(found.full)).all()
    shares = found.opened.double().mean(0).tolist()
    assert dict(zip(found.names, shares, strict=True)) == pytest.approx(method.peft.usage, abs=1e-6)
    if key.startswith("radlora") and key != "radlora-block":
        assert len(found.ranks.unique()) > 2
        assert float(found.ranks.double().mean()) / found.full[0] == pytest.approx(method.measured_rank, abs=1e-6)


@pytest.mark.parametrize("key", VARIANTS)
def test_truncate_refuses_with_the_reason(trained, tmp_path, key):
    _, folder, static = trained(key)
    with pytest.raises(ConfigError, match=rf"is a {kind_of(key)} adapter, which decides per input.*--form static"):
        truncate(str(folder), Choice(), tmp_path / "out", keep="40%", budget=None)
    assert not (tmp_path / "out").exists()
    truncate(str(static), Choice(), tmp_path / "out", keep="40%", budget=None)


def test_damaged_checkpoints(trained, tmp_path):
    def damaged(change_config=None, change_tensors=None):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained("cogalora")[1], folder)
        path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        path.write_text(json.dumps(json.loads(path.read_text()) | (change_config or {})))
        if change_tensors:
            save_file(change_tensors(load_file(weights)), weights)
        return str(folder)

    def cut(tensors):
        return {k: v[:1].contiguous() if "lora_A" in k else v for k, v in tensors.items()}

    def poison(tensors):
        return {k: v * float("nan") if "lora_A" in k else v for k, v in tensors.items()}

    def heads(tensors):
        return {k: v for k, v in tensors.items() if "lora_" not in k}

    whole = {"modules": ["x"], "before": {"examples": 9, "loss": 0.5}, "after": {"examples": 9, "loss": 0.6}}
    assert any("loss 0.5 -> loss 0.6" in line for line in inspect(damaged({"dropped": whole}), Choice()).lines)
    for changes, message in (
        (({"usage": {"x": "much"}}, None), "usage and threshold of its config must be numbers"),
        (({"threshold": None}, None), "usage and threshold of its config must be numbers"),
        (({"usage": {"x": 5}}, None), "must be numbers from 0 to 1"),
        (({"usage": {"x": float("nan")}}, None), "must be numbers from 0 to 1"),
        (({"usage": {"x": -0.1}}, None), "must be numbers from 0 to 1"),
        (({"threshold": 1.5}, None), "must be numbers from 0 to 1"),
        (({"dropped": {"a": 1}}, None), "dropped of its config is {'a': 1}; it is left out, or holds"),
        (({"dropped": 5}, None), "dropped of its config is 5"),
        (({"dropped": whole | {"modules": 5}}, None), "dropped of its config is"),
        (({"dropped": whole | {"after": None}}, None), "dropped of its config is"),
        (({"dropped": whole | {"before": {"loss": "x"}}}, None), "dropped of its config is"),
        (({"r": 0, "rank_pattern": {}}, None), "r of .* is 0; it must be a number above 0"),
        ((None, cut), r"factors of shapes \(1, 32\) and .* but its config says rank"),
        ((None, poison), "holds numbers that are not finite"),
        ((None, heads), "holds no tensor of a COGALORA adapter"),
    ):
        folder = damaged(*changes)
        with pytest.raises(DataError, match=message):
            inspect(folder, Choice())
        with pytest.raises(DataError, match=message):
            export(options(folder, tmp_path / "out"))
    folder = damaged({"peft_type": ["COGALORA"]})
    with pytest.raises(DataError, match="is neither LoRA nor AdaLoRA"):
        inspect(folder, Choice())
    assert not (tmp_path / "out").exists()


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(model_folder, data_file):
    return CompareOptions(
        methods="lora,cogalora",
        task=str(data_file),
        model=str(model_folder),
        budget="r=8",
        seeds="2",
        steps=30,
        batch_size=4,
        text="sentence",
        label="verdict",
    )


@pytest.fixture(scope="module")
def runs(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    compare(plan, output=folder, store=None, command="rankwise compare")
    return folder


@pytest.mark.slow
def test_a_comparison_holds_both(plan, runs, capsys):
    content = json.loads((runs / "results.json").read_text())
    entries = {(run["method"], run["seed"]): run for run in content["runs"]}
    assert set(entries) == {(m, s) for m in ("lora", "cogalora") for s in (0, 1)}
    for seed in (0, 1):
        gated, plain = entries["cogalora", seed], entries["lora", seed]
        assert 0 < plain["parameters"] - gated["parameters"] < 192  # less than one component is left over
        assert set(gated["metrics"]) == set(plain["metrics"])
        assert set(gated["rank_pattern"]) == set(plain["rank_pattern"])
    assert {c["arm"] for c in content["comparisons"]} == {"cogalora"}
    for plot in ("metric_against_parameters.png", "ranks.png"):
        assert (runs / plot).read_bytes().startswith(b"\x89PNG")
    assert "cogalora" in results_markdown(content)
    capsys.readouterr()
    again = compare(plan, output=runs, store=None, command="rankwise compare")
    assert " ".join(capsys.readouterr().err.split()).count("from the store") == 4
    assert again.content["runs"] == content["runs"]
    assert report(runs, store=None).content["runs"] == content["runs"]


@pytest.mark.parametrize("form", ["compact", "static"])
def test_a_run_is_exported_with_its_numbers(runs, tmp_path, form, model_folder):
    with Store(runs / "store.sqlite") as store:
        record = next(r for r in store.runs() if (r.method, r.seed) == ("cogalora", 1))
    answer = export(options(runs, tmp_path / "out", form, choice=Choice(method="cogalora", seed=1)))
    assert answer.data["run_id"] == record.run_id
    text = (tmp_path / "out" / "README.md").read_text()
    for name, metric in record.metrics.items():
        assert f"| {name} | {metric.value:.4g} | {metric.se:.4g} | {metric.n} |" in text
    assert ("before decisions were averaged" in text) is (form == "static")
    assert ("| adapter parameters | " + f"{record.parameters:,} |" in text) is (form == "compact")
    assert str(runs) not in text
    assert str(model_folder) not in text
    assert {"rankwise", "cogalora"} <= set(re.findall(r"^- (\w+)$", text, re.M))
    inspected = inspect(str(runs), Choice(method="cogalora", seed=1)).data
    assert inspected["parameters"] == record.parameters
    assert {name: row["rank"] for name, row in inspected["modules"].items()} == record.rank_pattern


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, model_folder, data_file):
    """Stopped at step 17 of 30, states saved every 5: all that comes of it is as of an unbroken run."""
    from rankwise.experiments import runner
    from rankwise.experiments.progress import Silent
    from rankwise.experiments.schema import RunConfig

    class Stop(Silent):
        def step(self, step, loss):
            if step == 17:
                raise KeyboardInterrupt

    config = RunConfig.model_validate(
        {
            "model": str(model_folder),
            "task": {"name": "files", "path": str(data_file), "text": ["sentence"], "label": "verdict"},
            "method": {"name": "cogalora", "budget": "r=8"},
            "training": {"max_steps": 30, "batch_size": 4, "save_every": 5},
        }
    )
    made = []
    for name, first in (("whole", None), ("broken", Stop())):
        with Store(tmp_path / name / "store.sqlite") as store:
            if first is not None:
                with pytest.raises(KeyboardInterrupt):
                    runner.run(config, store, tmp_path / name, first)
                assert list((tmp_path / name / "unfinished").glob("*/checkpoint-15"))
            record = runner.run(config, store, tmp_path / name).record
            tensors = load_file(tmp_path / name / "checkpoints" / record.run_id / "adapter_model.safetensors")
            text = (tmp_path / name / "checkpoints" / record.run_id / "adapter_config.json").read_text()
            made.append((store.steps(record.run_id, "train_loss"), record.metrics, json.loads(text), tensors))
    (one_losses, one_metrics, one_config, one), (losses, metrics, config, other) = made
    assert losses == one_losses
    assert len(losses) == 30
    assert metrics == one_metrics
    ordered = {"target_modules": None, "modules_to_save": None}
    assert config | ordered == one_config | ordered
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        export(options(tmp_path / "nowhere", tmp_path / "out", "static"))
