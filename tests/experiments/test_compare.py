"""Comparisons: paired, resumable, never overwriting; every trouble is one message and leaves finished runs alone."""

import errno
import json
import shutil
import subprocess
import sys

import pytest

from rankwise.errors import BudgetError, ConfigError, DataError, ModelError, OutputError, StoreError, TrainingError
from rankwise.experiments import runner
from rankwise.experiments.commands import CompareOptions, compare, parse_seeds, report
from rankwise.experiments.plan_commands import verdict
from rankwise.experiments.store import Store


@pytest.fixture
def options(model_folder, data_file):
    def make(**changes):
        given = {
            "methods": "lora,glora",
            "task": str(data_file),
            "text": "sentence",
            "label": "verdict",
            "model": str(model_folder),
            "budget": "r=2",
            "seeds": "2",
            "steps": 6,
            "batch_size": 4,
        }
        return CompareOptions(**(given | changes))

    return make


def go(options, output, store=None):
    return compare(options, output=output, store=store, command="rankwise compare")


def test_comparison_writes_everything(options, tmp_path):
    made = go(options(methods="lora,peft_adalora,glora,full"), tmp_path / "out")
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content == made.content
    assert [(r["method"], r["seed"]) for r in content["runs"]] == [
        (m, s) for s in (0, 1) for m in ("lora", "peft_adalora", "glora", "full")
    ]
    by_method = {r["method"]: r for r in content["runs"] if r["seed"] == 0}
    assert by_method["glora"]["parameters"] == by_method["lora"]["parameters"]
    assert by_method["peft_adalora"]["parameters"] <= by_method["lora"]["parameters"]
    assert by_method["full"]["rank_pattern"] == {}
    assert sum(by_method["lora"]["rank_pattern"].values()) == 2 * 12
    for entry in content["runs"]:
        assert set(entry["metrics"]) == {"accuracy", "f1", "matthews_correlation", "loss"}
        folder = tmp_path / "out" / entry["checkpoint"]
        name = "model.safetensors" if entry["method"] == "full" else "adapter_model.safetensors"
        assert (folder / name).is_file()
    assert [c["arm"] for c in content["comparisons"] if c["metric"] == "accuracy"] == ["peft_adalora", "glora", "full"]
    assert {c["reference"] for c in content["comparisons"]} == {"lora"}
    for plot in ("metric_against_parameters.png", "ranks.png"):
        assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")
    with Store(tmp_path / "out/store.sqlite") as store:
        glora = next(r for r in store.runs("completed") if r.method == "glora")
        assert [step for step, _ in store.steps(glora.run_id, "train_loss")] == [1, 2, 3, 4, 5, 6]
        events = {row.event for row in store.rank_trace(glora.run_id)}
        assert {"start", "resize", "end"} <= events
        assert any(row.score > 0 for row in store.rank_trace(glora.run_id) if row.event == "resize")
    assert not (tmp_path / "out" / runner.WORK / glora.run_id).exists()


def test_the_same_command_does_only_what_is_missing(options, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real, calls = runner._train, []

    def train(config, *rest):
        calls.append(config.run_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(config, *rest)

    monkeypatch.setattr(runner, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        go(options(), out)
    with Store(out / "store.sqlite") as store:
        assert [r.status for r in store.runs()] == ["completed", "completed", "interrupted"]
        first = store.runs()[0]
    go(options(), out)
    assert len(calls) == 5  # two finished, one interrupted; then that one and the fourth
    assert calls[2] == calls[3]
    go(options(), out)
    assert len(calls) == 5
    with Store(out / "store.sqlite") as store:
        assert store.get(first.run_id) == first


def test_uniform_against_uniform_is_identical(options, tmp_path):
    """The negative control: one config, run twice, gives the same losses bit for bit."""
    losses = []
    for name in ("a", "b"):
        go(options(methods="lora", seeds="0,"), tmp_path / name)
        with Store(tmp_path / name / "store.sqlite") as store:
            losses.append(store.steps(store.runs()[0].run_id, "train_loss"))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_another_comparison_in_the_folder_is_refused_and_shared_through_the_store(options, tmp_path):
    go(options(), tmp_path / "out")
    before = (tmp_path / "out/results.json").read_bytes()
    with pytest.raises(OutputError, match=r"holds another comparison .*method.budget: r=2 there, r=3 here"):
        go(options(budget="r=3"), tmp_path / "out")
    assert (tmp_path / "out/results.json").read_bytes() == before
    made = go(options(methods="lora,glora,full"), tmp_path / "more", store=tmp_path / "out/store.sqlite")
    assert len(made.content["runs"]) == 6
    for entry in made.content["runs"]:
        assert (tmp_path / "more" / entry["checkpoint"]).is_dir()


@pytest.mark.slow
def test_folder_without_a_finished_run_is_free(options, tmp_path):
    """A typing mistake must not spoil the folder for the corrected command."""
    with pytest.raises(DataError):
        go(options(label="verdictt"), tmp_path / "out")
    assert len(go(options(), tmp_path / "out").content["runs"]) == 4


@pytest.mark.slow
def test_the_plan_of_a_mistaken_command_does_not_stay(options, tmp_path):
    with pytest.raises(DataError):
        go(options(label="verdictt"), tmp_path / "out")
    go(options(), tmp_path / "out")
    assert "verdictt" not in (tmp_path / "out/plan.yaml").read_text()
    (claim,) = verdict(tmp_path / "out", profile=None, output=None, store=None).content["verdicts"]
    assert claim["missing"] == []
    assert not claim["post_hoc"]


def test_the_plan_of_a_mistaken_command_stays_if_it_was_edited(options, tmp_path):
    with pytest.raises(DataError):
        go(options(label="verdictt"), tmp_path / "out")
    file = tmp_path / "out/plan.yaml"
    file.write_text(file.read_text().replace("max_steps: 6", "max_steps: 7"))
    with pytest.raises(OutputError, match="of another comparison and was edited"):
        go(options(), tmp_path / "out")
    assert "max_steps: 7" in file.read_text()


def test_foreign_folder_is_left_alone(options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds other files \(thesis.tex\); choose another --output"):
        go(options(), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_report_is_rebuilt_from_the_store_without_torch(options, tmp_path):
    made = go(options(), tmp_path / "out")
    for name in ("results.json", "ranks.png"):
        (tmp_path / "out" / name).unlink()
    code = (
        "import sys; from pathlib import Path; from rankwise.experiments.commands import report\n"
        f"report(Path({str(tmp_path / 'out')!r}), store=None)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    again = json.loads((tmp_path / "out/results.json").read_text())
    assert again["runs"] == made.content["runs"]
    assert again["comparisons"] == made.content["comparisons"]
    assert (tmp_path / "out/ranks.png").is_file()


@pytest.mark.slow
def test_lost_checkpoint_is_named(options, tmp_path):
    go(options(), tmp_path / "out")
    shutil.rmtree(tmp_path / "out/checkpoints")
    with pytest.raises(OutputError, match=r"is completed in .* but its checkpoint .* is gone"):
        go(options(), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": "lora,glorra"}, ConfigError, "unknown method 'glorra', did you mean 'glora'"),
        ({"methods": "lora,lora"}, ConfigError, "named twice: lora"),
        ({"methods": ","}, ConfigError, "--methods: empty"),
        ({"seeds": "none"}, ConfigError, "'none' is neither a number of seeds"),
        ({"seeds": "1,1"}, ConfigError, "--seeds: named twice: 1"),
        ({"budget": "many"}, BudgetError, "cannot read budget 'many'"),
        ({"budget": "24 ranks"}, BudgetError, "counts ranks, but methods are compared at equal parameters"),
        ({"budget": "1,5M"}, BudgetError, "cannot read budget"),
        ({"seeds": "20260101"}, ConfigError, "for one seed of that number write '20260101,'"),
        ({"budget": "10"}, BudgetError, "one rank in each of the 12 matrices costs"),
        ({"label": "verdictt"}, DataError, "did you mean 'verdict'"),
        ({"model": "./nowhere"}, ModelError, "model folder ./nowhere does not exist"),
        ({"steps": 1}, ConfigError, "ranks would never be reallocated"),
    ],
)
def test_wrong_use_is_explained(options, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        go(options(**changes), tmp_path / "out")


def test_several_mistakes_come_together(options, tmp_path):
    with pytest.raises(ConfigError) as caught:
        go(options(methods="loraa,glora,glora", seeds="2,2"), tmp_path / "out")
    assert len(caught.value.findings) == 3


def test_diverged_run_is_failed_with_advice_and_can_be_done_again(options, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+ .*lower training.learning_rate"):
        go(options(methods="full", learning_rate=1e18, seeds="0,"), out)
    with Store(out / "store.sqlite") as store:
        (record,) = store.runs()
    assert record.status == "failed"
    assert "the loss is" in record.error


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_for_one_run_is_said_and_the_others_are_done(options, tmp_path, monkeypatch, error):
    real = runner._train

    def train(config, *rest):
        if config.method.name == "glora":
            raise error
        return real(config, *rest)

    monkeypatch.setattr(runner, "_train", train)
    with pytest.raises(TrainingError, match=r"1 of 2 runs failed.*\n  glora.* ran out of memory; lower training"):
        go(options(methods="glora,lora", seeds="0,", steps=2), tmp_path / "out")
    with Store(tmp_path / "out/store.sqlite") as store:
        assert {r.method: r.status for r in store.runs()} == {"glora": "failed", "lora": "completed"}


def test_full_disk_is_one_message(options, tmp_path, monkeypatch):
    from rankwise.adapters import export

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "save_file", no_space)
    with pytest.raises(OutputError, match=r"cannot write .*checkpoints.*No space left on device"):
        go(options(methods="lora", seeds="0,"), tmp_path / "out")
    with Store(tmp_path / "out/store.sqlite") as store:
        assert store.runs()[0].status == "failed"
    assert not list((tmp_path / "out/checkpoints").iterdir())


def test_corrupt_store_is_refused_untouched(options, tmp_path):
    out = tmp_path / "out"
    go(options(methods="lora", seeds="0,"), out)
    for extra in out.glob("store.sqlite-*"):
        extra.unlink()
    (out / "store.sqlite").write_bytes(b"not a database" * 500)
    with pytest.raises(StoreError, match=r"store\.sqlite"):
        go(options(methods="lora", seeds="0,"), out)
    assert (out / "store.sqlite").read_bytes() == b"not a database" * 500


def test_output_that_cannot_be_made(options, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another --output"):
        go(options(), tmp_path / "file")
    with pytest.raises(OutputError, match=r"cannot write .*choose another --output"):
        go(options(), tmp_path / "file/inside")


def test_impossible_steps_are_refused_before_anything_is_trained(options, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_train", lambda *_: pytest.fail("trained"))
    with pytest.raises(ConfigError) as caught:
        go(options(methods="lora,peft_adalora,glora", steps=1), tmp_path / "out")
    assert {finding.path.split(":")[0] for finding in caught.value.findings} == {"peft_adalora", "glora"}


@pytest.mark.slow
def test_runs_of_different_versions_are_noted(options, tmp_path, monkeypatch):
    go(options(methods="lora"), tmp_path / "out")
    monkeypatch.setattr(runner, "code_state", lambda: "other")
    made = go(options(), tmp_path / "more", store=tmp_path / "out/store.sqlite")
    assert "different versions" in made.content["comparisons"][0]["note"]


@pytest.mark.slow
def test_changed_data_under_the_same_name_is_refused(options, tmp_path, data_file):
    """The run id covers the config; a finished run of other examples must not be passed off as this one."""
    data = tmp_path / "d.csv"
    data.write_text(data_file.read_text())
    go(options(task=str(data)), tmp_path / "out")
    go(options(task=str(data)), tmp_path / "out")
    data.write_text(data_file.read_text().replace("word1 ", "word2 "))
    runner.load_task.cache_clear()  # as in the next process
    with pytest.raises(DataError, match=r"was made with other inputs .* the data or the model folder has changed"):
        go(options(task=str(data)), tmp_path / "out")


@pytest.mark.slow
def test_half_copied_checkpoint_is_copied_again(options, tmp_path):
    go(options(), tmp_path / "out")
    again = go(options(), tmp_path / "more", store=tmp_path / "out/store.sqlite")
    weights = tmp_path / "more" / again.content["runs"][0]["checkpoint"] / "adapter_model.safetensors"
    weights.unlink()
    go(options(), tmp_path / "more", store=tmp_path / "out/store.sqlite")
    assert weights.is_file()
    report(tmp_path / "more", store=None)
    assert not (tmp_path / "more/store.sqlite").exists()


def test_report_without_its_store(options, tmp_path):
    go(options(methods="lora"), tmp_path / "out")
    for path in (tmp_path / "out").glob("store.sqlite*"):
        path.unlink()
    with pytest.raises(StoreError, match=r"is not at .*name it with --store"):
        report(tmp_path / "out", store=None)
    assert not (tmp_path / "out/store.sqlite").exists()


@pytest.mark.slow
def test_real_file_size_limit_is_one_message(options, tmp_path):
    """What safetensors raises on a full disk is no OSError."""
    code = (
        "import resource, sys; from pathlib import Path; from rankwise.errors import OutputError\n"
        "from rankwise.adapters.export import new_directory; from safetensors.torch import save_file; import torch\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        f"    with new_directory(Path({str(tmp_path / 'x')!r})) as folder:\n"
        "        save_file({'a': torch.zeros(9999)}, str(folder / 'a.safetensors'))\n"
        "except OutputError as error:\n"
        "    sys.exit(0 if 'cannot write' in str(error) else 1)\n"
        "sys.exit(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_long_texts_are_cut_to_what_the_model_takes(options, tmp_path, data_file):
    long = tmp_path / "long.csv"
    rows = data_file.read_text().splitlines()
    long.write_text("\n".join([rows[0], *(f"{'word1 ' * 90}{row}" for row in rows[1:])]) + "\n")
    assert go(options(task=str(long), methods="lora", seeds="0,"), tmp_path / "out").content["runs"]


def test_report_needs_a_run_folder(tmp_path):
    with pytest.raises(OutputError, match="is no run folder"):
        report(tmp_path, store=None)


@pytest.mark.parametrize(("text", "seeds"), [("3", (0, 1, 2)), ("0,5,7", (0, 5, 7)), ("4,", (4,)), ("1", (0,))])
def test_seeds_are_read(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "a", "1,b", "99999999999,1"])
def test_bad_seeds(text):
    with pytest.raises(ConfigError, match="neither a number of seeds"):
        parse_seeds(text)
