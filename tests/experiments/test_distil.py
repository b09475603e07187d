"""`rankwise distil`: a plain LoRA taught by an adapter that decides per input, on the tiny model."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_files import WORDS, write_data
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.block_distil import distance
from rankwise.adapters.conditional.decisions import decisions_of
from rankwise.adapters.conditional.tuner import ROUTER
from rankwise.cli import app
from rankwise.errors import ConfigError, OutputError, TrainingError
from rankwise.experiments import distil as distilling
from rankwise.experiments.adapter_load import load_adapter
from rankwise.experiments.adapter_source import Choice, find_source
from rankwise.experiments.commands import CompareOptions, compare
from rankwise.experiments.distil import DistilOptions, distil
from rankwise.experiments.exporting import Exporting, export_source

GATED = Choice(method="cogalora")
TEXTS = tuple(" ".join(WORDS[(7 * i + 3 * j) % 40] for j in range(2 + i % 4)) for i in range(24))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("distil")
    data = write_data(folder / "tiny.csv", 1200)
    options = CompareOptions(
        methods="lora,cogalora", task=str(data), model=str(model_folder), budget="r=8", seeds="0,", steps=100,
        batch_size=8, learning_rate=2e-2, text="sentence", label="verdict",
    )  # fmt: skip
    compare(options, output=folder / "runs", store=None, command="rankwise compare")
    return folder / "runs"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, model_folder):
    """Random factors and routers, so that its decisions differ much from text to text."""
    folder = tmp_path_factory.mktemp("teacher")
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2, ignore_mismatched_sizes=True)
    config = CogaloraPeftConfig(r=3, target_modules=["query", "intermediate.dense"], task_type="SEQ_CLS")
    model = get_peft_model(base, config, adapter_name=ADAPTER)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            wide = 1.5 if f".{ROUTER}." in name else 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * wide
        elif "modules_to_save" in name:
            parameter.data *= 50  # a head of which decisions are heard
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    found = decisions_of(model.eval(), [tokenizer(list(TEXTS), return_tensors="pt", padding=True)])
    model.peft_config[ADAPTER].usage = dict(zip(found.names, found.opened.double().mean(0).tolist(), strict=True))
    assert 0.1 < found.share < 0.9
    model.save_pretrained(folder / "gated")
    return folder / "gated"


@pytest.fixture(scope="module")
def task(runs):
    return {"task": str(runs.parent / "tiny.csv"), "text": "sentence", "label": "verdict"}


@pytest.fixture(scope="module")
def taught(teacher, task, tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("taught") / "plain"
    options = DistilOptions(
        str(teacher), folder, steps=400, batch_size=16, learning_rate=1e-3, model=str(model_folder), **task
    )
    return distil(options).data, folder


def plain(folder, model_folder):
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2, ignore_mismatched_sizes=True)
    return PeftModel.from_pretrained(base, folder).eval()


def logits(model, model_folder, texts=TEXTS):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with torch.no_grad():
        return model(**tokenizer(list(texts), return_tensors="pt", padding=True)).logits


@pytest.mark.slow
def test_it_comes_nearer_to_its_teacher_than_the_averages_it_starts_from(taught):
    data, _ = taught
    assert data["distilled"]["distance"] < 0.75 * data["average"]["distance"]
    for side in ("teacher", "average", "distilled"):
        assert 0 <= data[side]["value"] <= 1
        assert data[side]["metric"] == "accuracy"


@pytest.mark.slow
def test_stock_peft_loads_it_and_says_what_the_teacher_says(taught, teacher, model_folder):
    data, folder = taught
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2, ignore_mismatched_sizes=True)
    said = logits(load_adapter(teacher, base), model_folder)
    near = distance(logits(plain(folder, model_folder), model_folder), said, 2.0)
    assert float(near) < 5 * data["average"]["distance"]
    merged = plain(folder, model_folder).merge_and_unload()
    assert torch.allclose(logits(merged, model_folder), logits(plain(folder, model_folder), model_folder), atol=1e-4)


def test_no_steps_is_the_static_export(runs, tmp_path, model_folder):
    data = distil(DistilOptions(str(runs), tmp_path / "none", GATED, steps=0)).data
    assert data["distilled"] == data["average"]
    export_source(find_source(str(runs), GATED), Exporting("static", tmp_path / "static"))
    one, other = (logits(plain(tmp_path / name, model_folder), model_folder) for name in ("none", "static"))
    assert torch.allclose(one, other, atol=1e-5)


def test_the_same_command_gives_the_same_weights(runs, tmp_path, model_folder):
    for name in ("a", "b"):
        torch.manual_seed(len(name) + ord(name))
        distil(DistilOptions(str(runs), tmp_path / name, GATED, steps=5))
    one, other = (logits(plain(tmp_path / name, model_folder), model_folder) for name in ("a", "b"))
    assert torch.equal(one, other)


def test_the_card_says_what_it_is(runs, tmp_path):
    distil(DistilOptions(str(runs), tmp_path / "out", GATED, steps=3, batch_size=8))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "It then learned the logits of that adapter for 3 steps of 8 training examples." in text
    assert "Measured while every input decided for itself" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "--steps: -1 is not possible; it must be 0 or more"),
        ({"batch_size": 0, "temperature": 0.0}, r"2 problems(?s:.*)--batch-size: 0(?s:.*)--temperature: 0"),
        ({"learning_rate": float("nan")}, "--learning-rate: nan"),
        ({"learning_rate": 5.0}, "--learning-rate: 5.0 is not possible; it must be above 0 and at most 1"),
        ({"choice": Choice(method="lora")}, "has an adapter that is the same for every input"),
        ({"text": "sentence"}, "(?s)distil.*--text: only goes with --task"),
    ],
)
def test_wrong_use(runs, tmp_path, changes, message):
    options = {"source": str(runs), "output": tmp_path / "out", "choice": GATED} | changes
    with pytest.raises(ConfigError, match=message):
        distil(DistilOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(runs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not empty"):
        distil(DistilOptions(str(runs), tmp_path, GATED, steps=1))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_left_after_a_failure(runs, tmp_path, monkeypatch):
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(distilling, "distance", lambda student, *_: nan if student.requires_grad else torch.zeros(()))
    with pytest.raises(TrainingError, match=r"step 1: the distance to the teacher is .*lower --learning-rate"):
        distil(DistilOptions(str(runs), tmp_path / "out", GATED, steps=5))
    assert list(tmp_path.iterdir()) == []


def test_on_the_command_line(runs, tmp_path):
    made = CliRunner().invoke(
        app,
        ["distil", str(runs), "--method", "cogalora", "--steps", "2", "--output", str(tmp_path / "out"), "--json"],
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["steps"] == 2
