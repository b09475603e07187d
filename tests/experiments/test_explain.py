"""`rankwise explain` on real runs and on checkpoints: numbers counted again by hand, files, and wrong use."""

import csv
import json
import math
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_files import WORDS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rankwise import cli
from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.block_tuner import RadBlockPeftConfig
from rankwise.adapters.conditional.decisions import decisions_of
from rankwise.adapters.conditional.rad_config import RadloraPeftConfig
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.errors import ConfigError, DataError, ModelError, OutputError
from rankwise.experiments import explain as explaining
from rankwise.experiments.adapter_source import Choice
from rankwise.experiments.commands import CompareOptions, compare
from rankwise.experiments.explain import explain
from rankwise.experiments.explain_subject import ExplainOptions
from rankwise.experiments.explain_tables import shortened
from rankwise.experiments.runner import load_task
from rankwise.experiments.store import Store

FILES = ["activation.png", "decisions.csv", "explain.json", "ranks_used.png"]
GATED = Choice(method="cogalora")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Its own copy, so that a test may change it."""
    from tiny_files import write_data

    return write_data(tmp_path_factory.mktemp("explained") / "tiny.csv", 240)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder, data):
    """LoRA, CoGaLoRA and full fine-tuning, one run each."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    options = CompareOptions(
        methods="lora,cogalora,full",
        task=str(data),
        model=str(model_folder),
        budget="r=8",
        seeds="0,",
        steps=60,
        batch_size=8,
        text="sentence",
        label="verdict",
    )
    compare(options, output=folder, store=None, command="rankwise compare")
    return folder


@pytest.fixture(scope="module")
def explained(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained") / "out"
    return explain(ExplainOptions(str(runs), GATED, folder)), folder


def record_of(runs, method="cogalora"):
    with Store(runs / "store.sqlite") as store:
        return next(record for record in store.runs() if record.method == method)


def table_of(folder):
    """(modules, ranks (examples, modules), labels, predictions, places) of decisions.csv."""
    with (folder / "decisions.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    ranks = np.array([[int(value) for value in row[3:]] for row in rows])
    return head[3:], ranks, [row[1] for row in rows], [row[2] for row in rows], [int(row[0]) for row in rows]


def untrained(folder, model_folder, config=None, labels=2):
    """A checkpoint with random factors and routers, for the tiny model."""
    base = AutoModelForSequenceClassification.from_pretrained(
        model_folder, num_labels=labels, ignore_mismatched_sizes=True
    )
    config = config or CogaloraPeftConfig(r=3, target_modules=["query", "intermediate.dense"])
    config.task_type = "SEQ_CLS"
    model = get_peft_model(base, config, adapter_name=ADAPTER)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            wide = 1.5 if f".{ROUTER}." in name else 0.2
            parameter.data = torch.randn(parameter.shape, generator=generator) * wide
    model.save_pretrained(folder)
    return folder


# --- what it says ----------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_decisions(explained):
    folder, data = explained[1], explained[0].data
    names, ranks, labels, _, _ = table_of(folder)
    assert list(data["modules"]) == names
    assert len(names) == 12
    opened = ranks > 0
    classes = np.array(labels)
    for i, module in enumerate(data["modules"].values()):
        assert set(ranks[:, i]) <= {0, module["rank"]}
        assert module["open"] == pytest.approx(opened[:, i].mean())
        assert module["mean_rank"] == pytest.approx(ranks[:, i].mean())
        for label in ("good", "bad"):
            assert module["open_by_class"][label] == pytest.approx(opened[classes == label, i].mean())
        joint = Counter(zip(opened[:, i].tolist(), labels, strict=True))
        left, right, n = Counter(opened[:, i].tolist()), Counter(labels), len(labels)
        bits = sum(c / n * math.log2(c * n / (left[d] * right[k])) for (d, k), c in joint.items())
        assert module["bits"] == pytest.approx(bits, abs=1e-9)
    shares = opened.mean(axis=0)
    assert data["share_open"] == pytest.approx(opened.mean())
    assert data["share_of_rank"] == pytest.approx(
        ranks.sum() / (len(ranks) * sum(m["rank"] for m in data["modules"].values()))
    )
    assert data["never_open"] == (shares == 0).sum()
    assert data["always_open"] == (shares == 1).sum()
    assert data["sometimes_open"] == ((shares > 0) & (shares < 1)).sum() > 0
    assert data["ranks_used"] == {str(k): v for k, v in sorted(Counter(ranks.flatten().tolist()).items())}
    for label in ("good", "bad"):
        mine = ranks[classes == label]
        assert data["classes"][label]["examples"] == len(mine)
        assert data["classes"][label]["share_open"] == pytest.approx((mine > 0).mean())
        assert data["classes"][label]["mean_total_rank"] == pytest.approx(mine.sum(axis=1).mean())


def test_predictions_are_those_of_the_run(runs, explained):
    answer, folder = explained
    _, ranks, labels, predictions, places = table_of(folder)
    record = record_of(runs)
    with Store(runs / "store.sqlite") as store:
        predicted, references = store.predictions(record.run_id, "validation")
    names = ("bad", "good")
    assert predictions == [names[int(i)] for i in predicted]
    assert labels == [names[int(i)] for i in references]
    assert places == list(range(len(labels)))
    thirds = answer.data["thirds"]
    assert sum(third["examples"] for third in thirds) == len(labels)
    right = sum(third["value"] * third["examples"] for third in thirds)
    assert right / len(labels) == pytest.approx(record.metrics["accuracy"].value)
    total = ranks.sum(axis=1)
    for third in thirds:
        rows = (total >= third["total_rank"]["from"]) & (total <= third["total_rank"]["to"])
        hits = np.array(labels)[rows] == np.array(predictions)[rows]
        assert (third["examples"], third["value"]) == (rows.sum(), pytest.approx(hits.mean()))
        assert third["se"] == pytest.approx(math.sqrt(hits.mean() * (1 - hits.mean()) / rows.sum()))


def test_every_row_is_what_its_own_text_gives_alone(runs, explained, model_folder):
    _, ranks, *_ = table_of(explained[1])
    base = AutoModelForSequenceClassification.from_pretrained(model_folder)
    model = PeftModel.from_pretrained(base, runs / "checkpoints" / record_of(runs).run_id)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = load_task_of(runs).validation["validation"]["text"][:]
    alone = decisions_of(model, [dict(tokenizer([text], return_tensors="pt")) for text in texts]).ranks
    assert ranks.tolist() == alone.tolist()
    assert len({tuple(row) for row in ranks.tolist()}) > 1


def test_the_share_that_training_measured_is_about_the_share_here(runs, explained):
    config = json.loads((runs / "checkpoints" / record_of(runs).run_id / "adapter_config.json").read_text())
    assert explained[0].data["share_open"] == pytest.approx(np.mean(list(config["usage"].values())), abs=0.1)


def test_extreme_examples_are_shown_with_their_texts(runs, explained):
    answer, folder = explained
    _, ranks, labels, predictions, _ = table_of(folder)
    total, opened = ranks.sum(axis=1), (ranks > 0).sum(axis=1)
    texts = load_task_of(runs).validation["validation"]["text"][:]
    for key, extreme in (("most_adapted", max), ("least_adapted", min)):
        rows = answer.data[key]
        assert len(rows) == 5
        assert rows[0]["total_rank"] == extreme(total)
        for row in rows:
            i = row["example"]
            said = (row["text"], row["label"], row["prediction"], row["open"], row["total_rank"])
            assert said == (texts[i], labels[i], predictions[i], opened[i], total[i])


def load_task_of(runs):
    from rankwise.experiments.schema import RunConfig

    return load_task(RunConfig.model_validate(record_of(runs).config).task)


def test_files(explained):
    answer, folder = explained
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert answer.data["files"] == [str(folder / name) for name in FILES]
    written = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
    assert written | {"files": answer.data["files"]} == answer.data
    for name in ("activation.png", "ranks_used.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not list(folder.parent.glob(".out*"))


def rendered(pictures):
    from rich.console import Console

    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        for picture in pictures:
            console.print(picture)
    return capture.get()


def test_tables_show_the_same_numbers(explained):
    answer, data = explained[0], explained[0].data
    shown = rendered(answer.pictures)
    grid = [line.split() for line in shown.splitlines()]
    assert ["layer", "q", "k", "v", "o", "up", "down"] in grid
    assert ["kind", "modules", "all", "bad", "good"] in grid
    for rank, count in data["ranks_used"].items():
        assert any(line[:2] == [rank, f"{count:,}"] for line in grid)
    for row in (*data["most_adapted"], *data["least_adapted"]):
        assert shortened(row["text"], 60) in shown
    for third in data["thirds"]:
        assert f"{third['value']:.4f}" in shown
    beyond = [name for name, module in data["modules"].items() if module["p"] <= 0.05]
    assert shown.count(" *\n") + shown.count(" * \n") == len(beyond) > 0
    (line,) = [line for line in answer.lines if "beyond chance" in line]
    assert line.startswith(f"{len(beyond)} of 12 modules")
    assert f"modules: {data['never_open']} never open, {data['always_open']} always" in answer.lines[1]


def test_texts_are_shortened_to_one_line():
    assert shortened("a  b\nc", 10) == "a b c"
    assert shortened("x" * 11, 10) == "x" * 9 + "…"


# --- what it is told -------------------------------------------------------------------------------------------------


def test_a_checkpoint_and_a_task_say_the_same_as_the_run(runs, explained, data, model_folder, tmp_path):
    shutil.copytree(runs / "checkpoints" / record_of(runs).run_id, tmp_path / "checkpoint")
    named = ExplainOptions(
        str(tmp_path / "checkpoint"), output=tmp_path / "out", task=str(data), text="sentence", label="verdict"
    )
    found = explain(named).data
    same = ("modules", "classes", "ranks_used", "thirds", "most_adapted", "least_adapted", "share_open", "examples")
    assert {key: found[key] for key in same} == {key: explained[0].data[key] for key in same}
    assert (found["run_id"], found["method"], found["peft_type"]) == (None, None, "COGALORA")


def test_limit_takes_the_same_stratified_sample_every_time(runs, tmp_path, explained):
    one = explain(ExplainOptions(str(runs), GATED, tmp_path / "one", limit=10))
    two = explain(ExplainOptions(str(runs), GATED, tmp_path / "two", limit=10))
    assert (tmp_path / "one/decisions.csv").read_text() == (tmp_path / "two/decisions.csv").read_text()
    assert (one.data["examples"], one.data["examples_in_split"]) == (10, explained[0].data["examples"])
    assert "10 of 24 examples" in one.lines[0]
    _, ranks, labels, _, places = table_of(tmp_path / "one")
    assert Counter(labels) == {"good": 5, "bad": 5}
    assert (ranks == table_of(explained[1])[1][places]).all()
    assert two.data["most_adapted"][0]["example"] in places
    assert explain(ExplainOptions(str(runs), GATED, tmp_path / "all", limit=10_000)).data["examples"] == 24


def test_the_training_split(runs, tmp_path):
    found = explain(ExplainOptions(str(runs), GATED, tmp_path / "out", split="train")).data
    assert (found["split"], found["examples"]) == ("train", 216)


def test_output_lies_in_the_run_folder_by_itself(runs, monkeypatch, tmp_path, model_folder, data):
    answer = explain(ExplainOptions(str(runs), GATED))
    run = record_of(runs).run_id
    assert Path(answer.data["files"][0]).parent == runs / "explain" / f"{run}-validation"
    with pytest.raises(OutputError, match="exists and is not empty"):
        explain(ExplainOptions(str(runs), GATED))
    monkeypatch.chdir(tmp_path)
    untrained(tmp_path / "mine", model_folder)
    answer = explain(ExplainOptions("mine", task=str(data), text="sentence", label="verdict"))
    assert (tmp_path / "explain" / "mine-validation" / "explain.json").is_file()


def write(path, head, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_regression_is_grouped_by_thirds_of_the_label(tmp_path, model_folder):
    folder = untrained(tmp_path / "checkpoint", model_folder, labels=1)
    rows = [[f"{WORDS[i % 40]} {WORDS[i * 7 % 40]} {WORDS[i * 3 % 40]}", i / 7] for i in range(60)]
    task = write(tmp_path / "numbers.csv", ["text", "label"], rows)
    answer = explain(ExplainOptions(str(folder), output=tmp_path / "out", task=str(task), split="train"))
    assert {name: entry["examples"] for name, entry in answer.data["classes"].items()} == {
        "lowest labels": 18, "middle labels": 18, "highest labels": 18,
    }  # fmt: skip
    assert {third["metric"] for third in answer.data["thirds"]} == {"mse"}
    _, _, labels, predictions, _ = table_of(tmp_path / "out")
    errors = (np.array(labels, float) - np.array(predictions, float)) ** 2
    total = sum(third["value"] * third["examples"] for third in answer.data["thirds"])
    assert total == pytest.approx(errors.sum(), rel=1e-5)
    assert isinstance(answer.data["most_adapted"][0]["label"], float)
    assert "mse by how much is adapted" in rendered(answer.pictures)


def test_pairs_of_texts_and_words_that_look_like_markup(tmp_path, model_folder):
    folder = untrained(tmp_path / "checkpoint", model_folder, labels=3)
    names = ["[b]one", "two $x$", "[/three]"]
    rows = [[f"[red] {WORDS[i % 40]}", f"=cmd {WORDS[i * 7 % 40]}, {i}", names[i % 3]] for i in range(60)]
    task = write(tmp_path / "pairs.csv", ["one", "other", "label"], rows)
    options = ExplainOptions(str(folder), output=tmp_path / "out", task=str(task), text="one,other", split="train")
    answer = explain(options)
    assert set(answer.data["classes"]) == set(names)
    shown = rendered(answer.pictures)
    for word in ("[red] ", " | =cmd ", *names):
        assert word in shown
    assert answer.data["most_adapted"][0]["text_pair"].startswith("=cmd")


def test_a_class_without_examples_is_left_out(tmp_path, model_folder):
    folder = untrained(tmp_path / "checkpoint", model_folder, labels=3)
    train = [[WORDS[i], "abc"[i % 3]] for i in range(30)]
    task = write(tmp_path / "train.csv", ["text", "label"], train)
    seen = write(tmp_path / "validation.csv", ["text", "label"], [row for row in train if row[1] != "b"][:8])
    options = ExplainOptions(str(folder), output=tmp_path / "out", task=str(task), validation=str(seen))
    answer = explain(options)
    assert set(answer.data["classes"]) == {"a", "c"}
    assert all(set(module["open_by_class"]) == {"a", "c"} for module in answer.data["modules"].values())
    rendered(answer.pictures)


def test_blocks(tmp_path, model_folder, data):
    config = RadBlockPeftConfig(r=2, target_modules=["query"], router_after=0, keep_last=0)
    folder = untrained(tmp_path / "checkpoint", model_folder, config)
    answer = explain(
        ExplainOptions(str(folder), output=tmp_path / "out", task=str(data), text="sentence", label="verdict")
    )
    assert (answer.data["kind"], answer.data["peft_type"]) == ("blocks", "RADBLOCK")
    assert list(answer.data["modules"]) == ["bert.encoder.layer.1"]
    assert set(answer.data["ranks_used"]) <= {"0", "1"}
    shown = " ".join(rendered(answer.pictures).split())
    assert "% of examples that open each block" in shown
    assert "in bits (1 of 1 blocks)" in shown or "in bits (0 of 1 blocks)" in shown
    assert "decisions (0: skipped, 1: run)" in shown
    assert "blocks run" in shown
    assert not {"modules", "rank used"} & set(shown.split())
    assert "of the blocks that can be skipped are run" in answer.lines[0]
    assert answer.lines[1].startswith("blocks: ")


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lora", r"\(method lora\) has an adapter that is the same for every input: it decides nothing per input"),
        ("full", r"\(method full\) is a whole model: it decides nothing per input"),
    ],
)
def test_runs_that_decide_nothing(runs, tmp_path, method, message):
    with pytest.raises(ConfigError, match=message):
        explain(ExplainOptions(str(runs), Choice(method=method), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_foreign_checkpoint_that_decides_nothing(tmp_path, model_folder):
    folder = untrained(tmp_path / "lora", model_folder, LoraConfig(target_modules=["query"]))
    with pytest.raises(ConfigError, match=r"lora has an adapter that is the same for every input.*rankwise inspect"):
        explain(ExplainOptions(str(folder), task="docstrings"))


def test_a_folder_that_is_no_checkpoint_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json"):
        explain(ExplainOptions(str(tmp_path), task="docstrings"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"choice": Choice()}, ConfigError, "holds 3 runs, 3 fit; choose one with --run-id"),
        ({"choice": Choice(method="radlora")}, ConfigError, "none of them is the one asked for"),
        ({"source": "nowhere"}, ModelError, "checkpoint nowhere does not exist"),
        ({"limit": 1}, ConfigError, "--limit: 1 is too few examples; use at least 2"),
        ({"limit": -3}, ConfigError, "--limit: -3 is too few"),
        ({"split": "validatoin"}, ConfigError, r"has no split 'validatoin', did you mean 'validation'\?"),
        ({"text": "sentence"}, ConfigError, "--text: only goes with --task"),
        ({"label": "verdict", "validation": "x.csv"}, ConfigError, "--label: only goes with --task.*\n.*--validation"),
        ({"task": "missing.csv"}, DataError, "missing.csv"),
        ({"model": "/nowhere/model"}, ModelError, "model folder /nowhere/model does not exist"),
    ],
)
def test_wrong_use(runs, tmp_path, changes, error, message):
    given = {"source": str(runs), "choice": GATED, "output": tmp_path / "out"} | changes
    if "source" in changes:
        given["choice"] = Choice()
    with pytest.raises(error, match=f"(?s){message}"):
        explain(ExplainOptions(**given))
    assert list(tmp_path.iterdir()) == []


def test_remembered_decisions_are_counted(tmp_path, model_folder):
    rows = [[f"{WORDS[i % 6]} {WORDS[7]}", "ab"[i % 2]] for i in range(200)]  # 6 texts, again and again
    task = write(tmp_path / "again.csv", ["text", "label"], rows)
    config = RadloraPeftConfig(r=2, target_modules=["query", "intermediate.dense"], cache=100)
    folder = untrained(tmp_path / "checkpoint", model_folder, config)
    options = {"source": str(folder), "task": str(task), "split": "train", "model": str(model_folder)}
    answer = explain(ExplainOptions(output=tmp_path / "out", **options))
    examples = answer.data["examples"]
    hits = examples - 64  # all but the first batch
    assert answer.data["cache"] == {
        "hits": hits, "lookups": examples, "entries": 6, "size": 100, "rate": hits / examples
    }  # fmt: skip
    assert any(line.startswith(f"remembered decisions: {hits} of {examples} examples") for line in answer.lines)


def test_a_checkpoint_alone_does_not_know_its_task(runs, tmp_path, model_folder):
    folder = untrained(tmp_path / "checkpoint", model_folder)
    with pytest.raises(ConfigError, match=r"--task: .*checkpoint is no run of a run folder, so nothing says what"):
        explain(ExplainOptions(str(folder)))


def test_a_head_for_another_task(runs, tmp_path):
    task = write(tmp_path / "three.csv", ["text", "label"], [[WORDS[i], "abc"[i % 3]] for i in range(30)])
    with pytest.raises(ModelError, match=r"classifier\.\w+ is \(2.*\(3 outputs\).*was it trained for another task\?"):
        explain(ExplainOptions(str(runs), GATED, tmp_path / "out", task=str(task)))
    assert not (tmp_path / "out").exists()


def test_other_data_under_the_same_name(runs, tmp_path, data, monkeypatch):
    text = data.read_text(encoding="utf-8")
    load_task.cache_clear()
    try:
        data.write_text(text.replace("good", "fine"), encoding="utf-8")
        with pytest.raises(DataError, match=r"are not those that run .* was trained on; restore them, or name a task"):
            explain(ExplainOptions(str(runs), GATED, tmp_path / "out"))
        named = ExplainOptions(
            str(runs), GATED, tmp_path / "out", task=str(data), text="sentence", label="verdict", limit=4
        )
        assert set(explain(named).data["classes"]) == {"fine", "bad"}  # on purpose
    finally:
        data.write_text(text, encoding="utf-8")
        load_task.cache_clear()


def test_another_base_model_under_the_same_name(runs, tmp_path, model_folder):
    path, copy = model_folder / "config.json", tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    text = path.read_text()
    try:
        path.write_text(text.replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-05'))
        assert path.read_text() != text
        with pytest.raises(ModelError, match=r"is not the one that run .* was trained on; restore it, or name"):
            explain(ExplainOptions(str(runs), GATED, tmp_path / "out"))
    finally:
        path.write_text(text)
    explain(ExplainOptions(str(runs), GATED, tmp_path / "out", model=str(copy), limit=4))


@pytest.mark.parametrize("damage", ["no routers", "other shapes", "cut off", "bad config", "no such modules"])
def test_damaged_checkpoints(tmp_path, model_folder, data, damage):
    folder = untrained(tmp_path / "checkpoint", model_folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    if damage == "no routers":
        save_file({key: value for key, value in tensors.items() if ROUTER not in key}, path)
    elif damage == "other shapes":
        save_file({key: value[:2].contiguous() if "lora_A" in key else value for key, value in tensors.items()}, path)
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:100])
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        change = {"threshold": 3} if damage == "bad config" else {"exclude_modules": 5}  # PEFT's AttributeError
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
    options = ExplainOptions(
        str(folder), output=tmp_path / "out", task=str(data), text="sentence", label="verdict", limit=4
    )
    with pytest.raises((ModelError, DataError), match="checkpoint"):
        explain(options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_existing_output_is_told_before_anything_is_computed(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(explaining, "load_model", None)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not empty; choose another folder"):
        explain(ExplainOptions(str(runs), GATED, tmp_path))
    with pytest.raises(OutputError, match="exists and is not empty"):
        explain(ExplainOptions(str(runs), GATED, tmp_path / "mine"))
    with pytest.raises(OutputError, match="cannot write"):
        explain(ExplainOptions(str(runs), GATED, tmp_path / "mine" / "below"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_breaks_halfway_leaves_nothing(runs, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(explaining, "draw_ranks_used", broken)
    with pytest.raises(KeyboardInterrupt):
        explain(ExplainOptions(str(runs), GATED, tmp_path / "out", limit=4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["lora_B", "lora_router", "classifier"])
def test_weights_that_are_no_numbers_are_named_before_anything_is_computed(
    tmp_path, model_folder, data, part, monkeypatch
):
    folder = untrained(tmp_path / "checkpoint", model_folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(value for key, value in tensors.items() if part in key).view(-1)[-1] = math.nan
    save_file(tensors, path)
    monkeypatch.setattr(explaining, "decisions_of", None)
    with pytest.raises(DataError, match=rf"checkpoint: .*{part}.* holds numbers that are not finite"):
        explain(ExplainOptions(str(folder), output=tmp_path / "out", task=str(data), text="sentence", label="verdict"))
    assert not (tmp_path / "out").exists()


def test_models_that_give_no_numbers(tmp_path, model_folder, data):
    """Weights that are numbers, and too large ones."""
    from rankwise.errors import TrainingError

    folder = untrained(tmp_path / "checkpoint", model_folder)
    path = folder / "adapter_model.safetensors"
    tensors = {k: torch.full_like(v, 3e38) if "classifier" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(TrainingError, match=r"NaN|finite"):
        explain(ExplainOptions(str(folder), output=tmp_path / "out", task=str(data), text="sentence", label="verdict"))
    assert not (tmp_path / "out").exists()


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rankwise", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def test_from_the_command_line(call, runs, tmp_path, explained):
    words = ["explain", runs, "--method", "cogalora", "--output", tmp_path / "out"]
    code, out, _ = call(*words, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["modules"] == explained[0].data["modules"]
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "exists and is not empty" in err
    code, out, _ = call(*words[:-1], tmp_path / "two", "--limit", 8, "--split", "train")
    assert code == 0
    assert "most and least adapted examples" in out
    assert out.splitlines()[-4:] == [str(tmp_path / "two" / name) for name in FILES]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'RUN'"),
        (["{runs}", "--method", "lora"], "it decides nothing per input"),
        (["{runs}"], "choose one with --run-id"),
        (["{runs}", "--method", "cogalora", "--limit", "many"], "Invalid value for '--limit'"),
        (["{runs}", "--method", "cogalora", "--split", "test"], "has no split 'test'"),
        (["nowhere"], "checkpoint nowhere does not exist"),
    ],
)
def test_wrong_use_of_the_command_line(call, runs, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("explain", *(str(word).format(runs=runs) for word in words))
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_every_field_is_described(explained):
    """docs/explain.md names all fields, those of the entries included."""
    text = (Path(__file__).parents[2] / "docs/explain.md").read_text(encoding="utf-8")
    data = {key: value for key, value in explained[0].data.items() if key != "files"}
    inner = [next(iter(data["modules"].values())), next(iter(data["classes"].values())), data["thirds"][0]]
    for key in {*data, *data["most_adapted"][0], *(key for entry in inner for key in entry)}:
        assert f"`{key}`" in text
