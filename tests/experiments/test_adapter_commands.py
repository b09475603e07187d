"""`export`, `inspect` and `truncate` on real run folders and on checkpoints of stock PEFT."""

import json
import math
import re
import shutil
import sqlite3
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, batch, build, logits, tiny_model, tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rankwise.adapters.attach import ADAPTER
from rankwise.adapters.export import Frame
from rankwise.errors import BudgetError, ConfigError, DataError, ModelError, OutputError, StoreError
from rankwise.experiments import adapter_base, hub_upload
from rankwise.experiments.adapter_base import base_matrices, load_base
from rankwise.experiments.adapter_commands import ExportOptions, export, inspect, truncate
from rankwise.experiments.adapter_source import Choice, find_source
from rankwise.experiments.card import CardFacts, model_card, short_name
from rankwise.experiments.commands import CompareOptions, compare
from rankwise.experiments.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")
FORMS = ("compact", "uniform", "merged")
TARGETS = ["query", "value", "intermediate.dense"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder, data_file):
    """A run folder of `compare` with four runs, its model a local folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    options = CompareOptions(
        methods="glora,full",
        task=str(data_file),
        model=str(model_folder),
        budget="r=2",
        seeds="0,7",
        steps=4,
        batch_size=4,
        text="sentence",
        label="verdict",
    )
    compare(options, output=folder, store=None, command="rankwise compare")
    return folder


def record_of(runs, method="glora", seed=7):
    with Store(runs / "store.sqlite") as store:
        return next(r for r in store.runs() if (r.method, r.seed) == (method, seed))


def options(source, output, form="compact", **fields):
    return ExportOptions(str(source), form, output, **fields)


GLORA = Choice(method="glora", seed=7)


def randomise(model):
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def foreign(folder, config=None, family="bert", **base):
    """A checkpoint that stock PEFT saved, its base model beside it; returns (checkpoint folder, model)."""
    tiny_model(family, **base).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    config = config or LoraConfig(r=3, lora_alpha=5, rank_pattern={"value": 9}, target_modules=TARGETS)
    config.task_type = "SEQ_CLS"
    model = randomise(get_peft_model(model, config))
    model.save_pretrained(folder / "adapter")
    return folder / "adapter", model


def unlabelled():
    """Words that every tiny vocabulary has."""
    made = batch()
    return {"input_ids": made["input_ids"] % 40 + 3, "attention_mask": made["attention_mask"]}


def answer_of(folder, form, base):
    """Logits of stock PEFT or Transformers."""
    if form == "merged":
        return logits(AutoModelForSequenceClassification.from_pretrained(folder), unlabelled())
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    labels = load_file(Path(folder) / "adapter_model.safetensors")["base_model.model.classifier.weight"].shape[0]
    assert config["peft_type"] == "LORA"
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    return logits(PeftModel.from_pretrained(model, folder), unlabelled())


def front(text):
    _, block, body = re.split(r"^---$", text, maxsplit=2, flags=re.M)
    return yaml.safe_load(block), body


# --- which checkpoint ------------------------------------------------------------------------------------------------


def test_several_runs_are_listed_to_choose_from(runs, tmp_path):
    with pytest.raises(ConfigError, match="holds 4 runs, 4 fit; choose one with --run-id") as error:
        find_source(str(runs))
    with Store(runs / "store.sqlite") as store:
        for record in store.runs():
            assert f"{record.run_id}  {record.method}, seed {record.seed}" in str(error.value)
    with pytest.raises(ConfigError, match="2 fit"):
        find_source(str(runs), Choice(method="glora"))
    with pytest.raises(ConfigError, match="none of them is the one asked for"):
        find_source(str(runs), Choice(method="lora"))
    with pytest.raises(ConfigError, match="is no run folder, so there is nothing to choose"):
        find_source(str(runs / "checkpoints"), GLORA)


@pytest.mark.parametrize("how", ["method and seed", "id", "beginning of id", "checkpoint folder", "inside it"])
def test_every_way_to_name_a_run_finds_it_with_its_record(runs, how, monkeypatch):
    record = record_of(runs)
    folder = runs / "checkpoints" / record.run_id
    beginning = record.run_id[: record.run_id.index("-s7") + 3]
    if how == "inside it":
        monkeypatch.chdir(folder)
    source, choice = {
        "method and seed": (runs, GLORA),
        "id": (runs, Choice(run_id=record.run_id)),
        "beginning of id": (runs, Choice(run_id=beginning)),
        "checkpoint folder": (folder, None),
        "inside it": (".", None),
    }[how]
    found = find_source(str(source), choice)
    assert found.folder.resolve() == folder
    assert found.record == record


def test_run_folders_that_are_not_whole(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs, copy)
    shutil.rmtree(copy / "checkpoints" / record_of(runs).run_id)
    with pytest.raises(OutputError, match="was it moved"):
        find_source(str(copy), GLORA)
    (copy / "store.sqlite").unlink()
    with pytest.raises(StoreError, match=r"the results store of .* is not at"):
        find_source(str(copy), GLORA)
    assert not (copy / "store.sqlite").exists()


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_run_in_every_form_gives_the_logits_of_its_checkpoint(runs, tmp_path, model_folder, form):
    expected = answer_of(runs / "checkpoints" / record_of(runs).run_id, "compact", model_folder)
    answer = export(options(runs, tmp_path / "out", form, choice=GLORA))
    torch.testing.assert_close(answer_of(tmp_path / "out", form, model_folder), expected, rtol=0, atol=1e-5)
    assert answer.data["run_id"] == record_of(runs).run_id
    assert answer.data["notes"] == []
    assert (tmp_path / "out" / "tokenizer.json").exists() is (form == "merged")
    with pytest.raises(OutputError, match="exists and is not empty"):
        export(options(runs, tmp_path / "out", form, choice=GLORA))


def test_compact_counts_are_those_of_the_run(runs, tmp_path):
    answer = export(options(runs, tmp_path / "out", choice=GLORA))
    record = record_of(runs)
    assert answer.data["parameters"] == record.parameters
    assert answer.data["modules"] == sum(rank > 0 for rank in record.rank_pattern.values())
    uniform = export(options(runs, tmp_path / "wide", "uniform", choice=GLORA))
    assert uniform.data["parameters"] == 8 * sum(build("lora").costs.values())


@pytest.mark.parametrize("form", FORMS)
def test_card_has_the_numbers_of_the_run_and_no_path_of_this_machine(runs, tmp_path, model_folder, form):
    export(options(runs, tmp_path / "out", form, choice=GLORA))
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    record = record_of(runs)
    head, body = front(text)
    assert head["library_name"] == ("transformers" if form == "merged" else "peft")
    assert head["pipeline_tag"] == "text-classification"
    assert {"rankwise", "lora", "glora"} <= set(head["tags"])
    assert "base_model" not in head  # a folder of this machine is no name on the hub
    for path in (str(tmp_path), str(model_folder), str(runs), str(Path.home()) + "/"):
        assert path not in text
    for fact in ("| method | glora |", "| seed | 7 |", "| budget | r=2 |", f"| optimizer steps | {record.steps} |"):
        assert fact in body
    assert f"| adapter parameters | {record.parameters:,} |" in body
    assert f"| parameters trained at most | {record.peak_parameters:,} |" in body
    for name, metric in record.metrics.items():
        assert f"| {name} | {metric.value:.4g} | {metric.se:.4g} | {metric.n} |" in body
    assert f"{sum(record.rank_pattern.values())} components in all" in body
    assert f"peft {record.environment['versions']['peft']}" in body


def code_of(card):
    (block,) = re.findall(r"```python\n(.*?)```", card, re.S)
    return block


@pytest.mark.parametrize("form", FORMS)
def test_code_of_the_card_loads_the_export(tmp_path, form):
    folder, model = foreign(tmp_path, num_labels=5)
    export(options(folder, tmp_path / "out", form))
    code = code_of((tmp_path / "out" / "README.md").read_text())
    names = {}
    code = code.replace("path/to/this/folder", str(tmp_path / "out"))
    code = code.replace("path/to/the/base/model", str(tmp_path / "base"))
    if form != "merged":
        assert "num_labels=5" in code
    exec(code, names)
    torch.testing.assert_close(logits(names["model"], unlabelled()), logits(model, unlabelled()), rtol=0, atol=1e-5)
    assert names["tokenizer"].pad_token == "w0"


def test_card_of_a_foreign_checkpoint_says_what_is_known_and_no_more(tmp_path):
    folder, _ = foreign(tmp_path)
    export(options(folder, tmp_path / "out"))
    head, body = front((tmp_path / "out" / "README.md").read_text())
    assert head["tags"] == ["lora", "adapter"]
    assert "How it was trained is not recorded" in body
    for word in ("seed", "Results", "accuracy", "Versions", "method"):
        assert word not in body
    assert "| v | 2 | 9 | 9 | 9 |" in body


def test_base_model_of_the_hub_is_named_for_the_hub():
    facts = CardFacts("compact", "LoRA", "org/model-7b", "CAUSAL_LM", None, {"model.layers.0.q": 2}, 10)
    head, body = front(model_card(facts))
    assert head == {
        "base_model": "org/model-7b",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "adapter"],
    }
    assert 'AutoModelForCausalLM.from_pretrained("org/model-7b")' in body
    merged = front(model_card(CardFacts("merged", "LoRA", "org/model-7b", "CAUSAL_LM", None, {}, 10, where="me/it")))
    assert (merged[0]["base_model_relation"], merged[0]["library_name"]) == ("finetune", "transformers")
    assert 'AutoModelForCausalLM.from_pretrained("me/it")' in merged[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("minilm", "minilm"),
        ("org/model", "org/model"),
        ("/home/me/models/big", "big (a local folder)"),
        ("./big", "big (a local folder)"),
        ("~/big", "big (a local folder)"),
        ("a/b/c", "c (a local folder)"),
        (None, "unknown"),
    ],
)
def test_names_lose_their_folders(name, shown):
    assert short_name(name) == shown


def test_another_name_for_the_base_model_goes_into_the_checkpoint(tmp_path):
    folder, _ = foreign(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": "abc"}))
    export(options(folder, tmp_path / "out", model="org/model"))
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/model", None)
    assert front((tmp_path / "out" / "README.md").read_text())[0]["base_model"] == "org/model"


@pytest.mark.parametrize("form", FORMS)
def test_pefts_adalora_in_every_form(tmp_path, form):
    settings = {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2, "total_step": 8, "target_modules": TARGETS}
    folder, model = foreign(tmp_path, AdaLoraConfig(**settings))
    export(options(folder, tmp_path / "out", form))
    expected = logits(model, unlabelled())
    torch.testing.assert_close(answer_of(tmp_path / "out", form, tmp_path / "base"), expected, rtol=0, atol=1e-5)


def test_dora_is_merged_by_peft_and_has_no_other_form(tmp_path):
    folder, model = foreign(tmp_path, LoraConfig(r=3, use_dora=True, target_modules=TARGETS))
    export(options(folder, tmp_path / "out", "merged"))
    torch.testing.assert_close(
        answer_of(tmp_path / "out", "merged", None), logits(model, unlabelled()), rtol=0, atol=1e-5
    )
    for form in ("compact", "uniform"):
        with pytest.raises(
            ConfigError, match=rf"'{form}' is plain LoRA, but .* use_dora = True .*; with --form merged"
        ):
            export(options(folder, tmp_path / form, form))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_with_biases_has_no_form(tmp_path, bias):
    folder, _ = foreign(tmp_path, LoraConfig(r=3, bias=bias, target_modules=TARGETS))
    for form in FORMS:
        with pytest.raises(ConfigError, match=rf"bias '{bias}' trained biases") as caught:
            export(options(folder, tmp_path / "out", form))
        assert "--form merged" not in str(caught.value)


def test_config_without_a_type(tmp_path):
    folder, _ = foreign(tmp_path, LoraConfig(r=3, target_modules=TARGETS))
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["peft_type"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="names no peft_type"):
        export(options(folder, tmp_path / "out", "merged"))


@pytest.mark.parametrize("patterns", [{"(": 3}, [1]])
def test_patterns_that_are_none(tmp_path, patterns):
    folder, _ = foreign(tmp_path, LoraConfig(r=3, target_modules=TARGETS))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": patterns}))
    with pytest.raises(DataError, match="rank_pattern"):
        export(options(folder, tmp_path / "out"))


def test_merging_into_a_base_model_that_has_changed_since_the_run(runs, tmp_path, model_folder):
    weights = model_folder / "model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-4] + b"\0\0\0\0")
        with pytest.raises(ModelError, match=r"is not the one that run .* was trained on"):
            export(options(runs, tmp_path / "out", "merged", choice=GLORA))
    finally:
        weights.write_bytes(before)
    assert not (tmp_path / "out").exists()


def test_uniform_without_the_base_model_says_what_it_cannot_know(tmp_path):
    folder, _ = foreign(tmp_path, LoraConfig(r=3, target_modules=["layer.0.attention.self.query"]))
    known = export(options(folder, tmp_path / "known", "uniform"))
    assert (known.data["modules"], known.data["notes"]) == (2, [])
    shutil.rmtree(tmp_path / "base")
    blind = export(options(folder, tmp_path / "blind", "uniform"))
    assert blind.data["modules"] == 1
    assert "so layers that the checkpoint does not name got no zeros" in blind.data["notes"][0]
    tiny_model().save_pretrained(tmp_path / "elsewhere")
    seeing = export(options(folder, tmp_path / "seeing", "uniform", model=str(tmp_path / "elsewhere")))
    assert (seeing.data["modules"], seeing.data["notes"]) == (2, [])


def test_merging_needs_the_base_model(tmp_path):
    folder, _ = foreign(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(ModelError, match="does not exist"):
        export(options(folder, tmp_path / "out", "merged"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model; name it with --model"):
        export(options(folder, tmp_path / "out", "merged"))
    with pytest.raises(ModelError, match=r"cannot load the base model 'no/such': HF_HUB_OFFLINE is set.*--model"):
        export(options(folder, tmp_path / "out", "merged", model="no/such"))
    export(options(folder, tmp_path / "out", "merged", model=str(tmp_path / "moved")))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_head_that_nobody_has_is_not_made_up(tmp_path):
    """The base is a bare encoder and the checkpoint lost its classifier: merging would write a random head."""
    folder, _ = foreign(tmp_path)
    tiny_model().bert.save_pretrained(tmp_path / "base")
    export(options(folder, tmp_path / "whole", "merged"))
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {key: value for key, value in tensors.items() if ".lora_" in key}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"classifier\.bias of BertForSequenceClassification is neither in"):
        export(options(folder, tmp_path / "out", "merged"))
    assert not (tmp_path / "out").exists()


def test_merging_into_half_precision_keeps_its_type(tmp_path):
    folder, _ = foreign(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").bfloat16().save_pretrained(tmp_path / "base")
    answer = export(options(folder, tmp_path / "out", "merged"))
    assert answer.data["dtype"] == "bfloat16"
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_base_model_without_a_tokenizer(tmp_path):
    folder, _ = foreign(tmp_path)
    for file in (tmp_path / "base").glob("tokenizer*"):
        file.unlink()
    answer = export(options(folder, tmp_path / "out", "merged"))
    assert answer.data["notes"] == ["the base model has no tokenizer, so none was written"]


def test_causal_language_models(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=60, pad_token_id=0, tie_word_embeddings=True, **CONFIGS["llama"][2])
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = randomise(get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])))
    model.save_pretrained(tmp_path / "adapter")
    export(options(tmp_path / "adapter", tmp_path / "out", "merged"))
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    inputs = {"input_ids": torch.tensor([[3, 4, 5]])}
    torch.testing.assert_close(logits(merged, inputs), logits(model, inputs), rtol=0, atol=1e-5)
    answer = inspect(str(tmp_path / "adapter"), Choice())
    assert all(verdict["right"] for verdict in answer.data["servers"].values())
    model = randomise(
        get_peft_model(model.unload(), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["lm_head"]))
    )
    model.save_pretrained(tmp_path / "tied", save_embedding_layers=False)
    with pytest.raises(ConfigError, match=r"lm_head shares its weight with model\.embed_tokens"):
        export(options(tmp_path / "tied", tmp_path / "no", "merged"))
    dora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["lm_head"], use_dora=True)
    get_peft_model(model.unload(), dora).save_pretrained(tmp_path / "tied-dora", save_embedding_layers=False)
    with pytest.raises(ConfigError, match=r"lm_head shares its weight"):
        export(options(tmp_path / "tied-dora", tmp_path / "no", "merged"))
    assert not (tmp_path / "no").exists()


def test_full_fine_tuning_has_one_form(runs, tmp_path):
    choice = Choice(method="full", seed=0)
    answer = export(options(runs, tmp_path / "out", "merged", choice=choice))
    record = record_of(runs, "full", 0)
    assert answer.data["parameters"] == record.parameters
    merged = load_file(tmp_path / "out" / "model.safetensors")
    saved = load_file(runs / "checkpoints" / record.run_id / "model.safetensors")
    assert all(torch.equal(merged[key], saved[key]) for key in saved)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    text = (tmp_path / "out" / "README.md").read_text()
    assert front(text)[0]["tags"] == ["rankwise"]
    assert f"| accuracy | {record.metrics['accuracy'].value:.4g} |" in text
    assert str(runs) not in text
    for form in ("compact", "uniform"):
        with pytest.raises(ConfigError, match=f"holds a whole model, no adapter to write as '{form}'"):
            export(options(runs, tmp_path / form, form, choice=choice))
    with pytest.raises(ModelError, match="a whole model, no adapter"):
        inspect(str(runs), choice)


def test_public_alone_means_nothing(tmp_path):
    with pytest.raises(ConfigError, match="--public: only goes with --push"):
        export(options("anything", tmp_path / "out", public=True))


def test_unknown_form(tmp_path):
    with pytest.raises(ConfigError, match="--form: 'small' is none of compact, uniform, merged"):
        export(options("anything", tmp_path / "out", "small"))


@pytest.mark.parametrize("family", CONFIGS)
def test_labels_are_counted_by_the_shape_of_the_head(tmp_path, family):
    """Whatever the head is called and however many layers it has; two layers of it are as wide as the model."""
    model = tiny_model(family, num_labels=7)
    model.save_pretrained(tmp_path)
    heads = {"t5": "classification_head", "llama": "score", "gpt2": "score", "opt": "score"}
    head = {key: value for key, value in model.state_dict().items() if heads.get(family, "classifier") in key}
    frame = Frame(task_type="SEQ_CLS", base_model=str(tmp_path), extra=head)
    assert adapter_base.labels_of(frame) == 7
    assert adapter_base._labels(frame, AutoConfig.from_pretrained(tmp_path)) == 7
    assert base_matrices(frame)[0].keys() >= build("lora", tiny_model(family)).matrices.keys()
    assert load_base(frame).model.config.num_labels == 7


def test_task_types_that_are_none(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="task type DANCING is unknown"):
        load_base(Frame(task_type="DANCING", base_model=str(tmp_path)))
    with pytest.raises(ModelError, match=r"neither a task type nor a class of Transformers \('Nothing' is none\)"):
        load_base(Frame(model_class=("Nothing", "somewhere"), base_model=str(tmp_path)))
    found = load_base(Frame(model_class=("BertModel", "transformers.models.bert"), base_model=str(tmp_path)))
    assert type(found.model).__name__ == "BertModel"


# --- push ------------------------------------------------------------------------------------------------------------

SECRET = "hf_thisMustNotBeSeen"


class FakeHub:
    """Stands in for HfApi."""

    def __init__(self, *, private=True, broken=False):
        self.private, self.broken, self.calls = private, broken, []

    def create_repo(self, name, *, private, exist_ok):
        self.calls.append(("create", name, private, exist_ok))
        if self.broken:
            raise RuntimeError(f"401 for token {SECRET}\nwith more lines")
        return f"https://huggingface.co/{name}"

    def repo_info(self, name):
        return type("Info", (), {"private": self.private})

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch):
    """A hub that can be reached, with a token."""
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: SECRET)
    monkeypatch.setattr(hub_upload, "hub_reachable", lambda: True)
    monkeypatch.setattr(hub_upload, "make_api", lambda token: fake if token == SECRET else None)
    return fake


FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_push_is_private_unless_asked(hub, tmp_path):
    folder, _ = foreign(tmp_path)
    answer = export(options(folder, tmp_path / "out", model="org/base", push="me/adapter"))
    assert hub.calls == [("create", "me/adapter", True, True), ("upload", "me/adapter", FILES)]
    assert answer.data["url"] == "https://huggingface.co/me/adapter"
    assert 'PeftModel.from_pretrained(model, "me/adapter")' in (tmp_path / "out" / "README.md").read_text()
    assert all(SECRET not in path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())
    assert SECRET not in repr(hub_upload.prepare_push("me/adapter", public=False))
    hub.calls.clear()
    export(options(folder, tmp_path / "two", model="org/base", push="me/adapter", public=True))
    assert hub.calls[0] == ("create", "me/adapter", False, True)


def test_a_public_repository_is_not_filled_by_a_private_push(hub, tmp_path):
    folder, _ = foreign(tmp_path)
    hub.private = False
    with pytest.raises(ConfigError, match="me/adapter exists and is public; add --public"):
        export(options(folder, tmp_path / "out", model="org/base", push="me/adapter"))
    assert [call[0] for call in hub.calls] == ["create"]
    export(options(folder, tmp_path / "two", model="org/base", push="me/adapter", public=True))
    assert hub.calls[-1][0] == "upload"


def test_errors_of_the_hub_keep_the_folder_and_hide_the_token(hub, tmp_path):
    folder, _ = foreign(tmp_path)
    hub.broken = True
    with pytest.raises(OutputError) as error:
        export(options(folder, tmp_path / "out", model="org/base", push="me/adapter"))
    assert str(error.value).endswith("is written, but not uploaded to me/adapter: 401 for token (token)")
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize(
    ("name", "token", "reachable", "message"),
    [
        ("me/adapter", None, True, "no Hugging Face token; set HF_TOKEN .* Nothing was written"),
        ("me/adapter", SECRET, False, "cannot be reached"),
        ("adapter", SECRET, True, "'adapter' is no repository id; write USER/NAME"),
        ("a/b/c", SECRET, True, "is no repository id"),
        ("me/--", SECRET, True, "is no repository id"),
    ],
)
def test_pushes_that_cannot_work_stop_before_anything_is_written(
    monkeypatch, hub, tmp_path, name, token, reachable, message
):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    monkeypatch.setattr(hub_upload, "hub_reachable", lambda: reachable)
    folder, _ = foreign(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        export(options(folder, tmp_path / "out", model="org/base", push=name))
    assert SECRET not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert hub.calls == []


def test_a_folder_of_this_machine_is_no_base_model_on_the_hub(hub, tmp_path):
    folder, _ = foreign(tmp_path)
    with pytest.raises(ConfigError, match="needs a name there, not a folder of this machine"):
        export(options(folder, tmp_path / "out", push="me/adapter"))
    assert not (tmp_path / "out").exists()
    export(options(folder, tmp_path / "out", "merged", push="me/adapter"))  # a merged model needs no base
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_agrees_with_dense_svds_of_pefts_own_deltas(tmp_path):
    folder, model = foreign(tmp_path)
    data = inspect(str(folder), Choice()).data
    assert data["parameters"] == sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    squares = 0.0
    for name, row in data["modules"].items():
        layer = model.base_model.model.get_submodule(name)
        delta = layer.get_delta_weight(ADAPTER).detach().double().numpy()
        values = np.linalg.svd(delta, compute_uv=False)[: row["rank"]]
        np.testing.assert_allclose(row["singular_values"], values, rtol=1e-4, atol=1e-7)
        assert (row["rank"], row["scaling"]) == (layer.r[ADAPTER], pytest.approx(layer.scaling[ADAPTER]))
        assert row["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
        assert (row["largest"], row["smallest"]) == (row["singular_values"][0], row["singular_values"][-1])
        assert row["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-4)
        share = values / values.sum()
        assert row["effective_rank"] == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
        squares += row["norm"] ** 2
    assert data["norm"] == pytest.approx(math.sqrt(squares))
    assert set(data["other_tensors"]) == {"classifier.weight", "classifier.bias"}
    assert not data["servers"]["vLLM"]["right"]
    json.dumps(data, allow_nan=False)


def test_modules_that_the_run_dropped_are_shown(runs, tmp_path):
    """They are not in the checkpoint; the run's record has them. Here: a run whose result is cut to a fifth."""
    folder = tmp_path / "copy"
    shutil.copytree(runs, folder)
    record = record_of(folder)
    target = folder / "checkpoints" / record.run_id
    ranks = truncate(str(folder), GLORA, tmp_path / "cut", keep="20%", budget=None).data["ranks"]["after"]
    shutil.rmtree(target)
    shutil.copytree(tmp_path / "cut", target)
    with sqlite3.connect(folder / "store.sqlite") as store:
        store.execute("UPDATE runs SET rank_pattern = ? WHERE run_id = ?", (json.dumps(ranks), record.run_id))
    live = [name for name, rank in ranks.items() if rank]
    assert 0 < len(live) < len(ranks)
    answer = inspect(str(folder), GLORA)
    assert set(answer.data["modules"]) == set(live)
    assert rendered(answer.pictures[1]).count(" 0 ") >= len(ranks) - len(live)
    export(options(folder, tmp_path / "out", choice=GLORA))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{len(live)} of {len(ranks)} modules carry an adapter" in card


def rendered(picture):
    from rich.console import Console

    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(picture)
    return capture.get()


def test_inspect_prints_ranks_by_layer_and_kind(tmp_path):
    folder, _ = foreign(tmp_path)
    answer = inspect(str(folder), Choice())
    grid = [line.split() for line in rendered(answer.pictures[1]).splitlines() if line.strip()]
    assert grid[1:] == [["layer", "q", "v", "up"], ["0", "3", "9", "3"], ["1", "3", "9", "3"]]
    table = rendered(answer.pictures[0])
    assert "bert.encoder.layer.0.attention.self.value" in table
    assert any(line.startswith("LoRAX/TGI: ") for line in answer.lines)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_inspect_draws_the_heat_map(tmp_path, suffix):
    folder, _ = foreign(tmp_path)
    plot = tmp_path / f"ranks.{suffix}"
    answer = inspect(str(folder), Choice(), plot)
    assert answer.data["plot"] == str(plot)
    content = plot.read_bytes()
    if suffix == "png":
        width, height = struct.unpack(">II", content[16:24])
        assert width > height > 200
    else:
        assert content.startswith(b"<?xml")
    with pytest.raises(OutputError, match="exists; choose another name"):
        inspect(str(folder), Choice(), plot)
    assert plot.read_bytes() == content


def test_plot_of_another_kind_is_refused_before_work(tmp_path):
    with pytest.raises(DataError, match=r"cannot draw a '\.pdf' file; the name must end in \.png or \.svg"):
        inspect("anything", Choice(), tmp_path / "ranks.pdf")


# --- truncate --------------------------------------------------------------------------------------------------------


def test_truncated_checkpoint_loads_and_lost_what_was_said(tmp_path):
    folder, model = foreign(tmp_path)
    answer = truncate(str(folder), Choice(), tmp_path / "out", keep="40%", budget=None)
    before, after = answer.data["parameters"]["before"], answer.data["parameters"]["after"]
    assert 0.35 * before < after <= 0.4 * before
    loaded = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), tmp_path / "out"
    )
    assert sum(p.numel() for n, p in loaded.named_parameters() if ".lora_" in n) == after
    whole = gone = 0.0
    for name, rank in answer.data["ranks"]["after"].items():
        delta = model.base_model.model.get_submodule(name).get_delta_weight(ADAPTER).detach()
        layer = loaded.base_model.model.get_submodule(name)
        kept = layer.get_delta_weight(ADAPTER).detach() if rank else torch.zeros_like(delta)
        whole, gone = whole + float(delta.norm()) ** 2, gone + float((delta - kept).norm()) ** 2
        assert answer.data["lost"]["modules"][name] == pytest.approx(
            float((delta - kept).norm() / delta.norm()), abs=1e-4
        )
    assert answer.data["lost"]["total"] == pytest.approx(math.sqrt(gone / whole), abs=1e-5)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"{after:,} of {before:,} adapter parameters kept" in text
    assert (loaded.base_model.model.classifier.modules_to_save[ADAPTER].weight).shape == (3, 32)


def test_padding_and_copies_are_not_counted_as_kept(tmp_path):
    """Cutting the uniform form to 40 % gives what cutting the compact form gives, not 40 % of the zeros."""
    folder, _ = foreign(tmp_path)
    export(options(folder, tmp_path / "wide", "uniform"))
    plain = truncate(str(folder), Choice(), tmp_path / "one", keep="40%", budget=None)
    wide = truncate(str(tmp_path / "wide"), Choice(), tmp_path / "two", keep="40%", budget=None)
    assert wide.data["parameters"]["saved"] > wide.data["parameters"]["before"]
    assert wide.data["parameters"]["before"] == plain.data["parameters"]["before"]
    assert wide.data["ranks"]["after"] == plain.data["ranks"]["after"]
    assert wide.data["lost"]["total"] == pytest.approx(plain.data["lost"]["total"], rel=1e-5)
    assert "as saved, the rest does nothing" in wide.lines[0]
    assert "as saved" not in plain.lines[0]


def test_truncated_run_keeps_its_numbers_as_those_from_before(runs, tmp_path):
    truncate(str(runs), GLORA, tmp_path / "out", keep="50%", budget=None)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Measured before the truncation." in text
    assert "| seed | 7 |" in text


@pytest.mark.parametrize(("budget", "most"), [("1k", 1000), ("r=1", 448), ("5 ranks", None)])
def test_budgets_of_every_unit(tmp_path, budget, most):
    folder, _ = foreign(tmp_path)
    answer = truncate(str(folder), Choice(), tmp_path / "out", keep=None, budget=budget)
    if most is None:
        assert sum(answer.data["ranks"]["after"].values()) == 5
    else:
        assert 0 <= most - answer.data["parameters"]["after"] < 64


@pytest.mark.parametrize(
    ("keep", "budget", "message"),
    [
        (None, None, "either --keep 40% or --budget 200k"),
        ("40%", "1k", "either --keep 40% or --budget 200k"),
        ("40", None, "cannot read --keep '40'"),
        ("0%", None, "cannot read --keep '0%'"),
        ("100%", None, "cannot read --keep '100%'"),
        ("0.1%", None, "less than one component costs"),
        (None, "lots", "cannot read budget 'lots'"),
        (None, "5%", "a share of the base model; for a share of the adapter use --keep"),
        (None, "1m", "no less than is in use .*nothing to cut"),
        (None, "500 ranks", "nothing to cut"),
    ],
)
def test_budgets_that_cannot_be(tmp_path, keep, budget, message):
    folder, _ = foreign(tmp_path)
    with pytest.raises(BudgetError, match=message):
        truncate(str(folder), Choice(), tmp_path / "out", keep=keep, budget=budget)
    assert not (tmp_path / "out").exists()


def test_nothing_warns(tmp_path):
    """All three commands on a checkpoint of PEFT's, DoRA's merge included, with warnings as errors."""
    folder, _ = foreign(tmp_path, LoraConfig(r=3, use_dora=True, target_modules=TARGETS))
    plain, _ = foreign(tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        export(options(folder, tmp_path / "dora", "merged"))
        for form in FORMS:
            export(options(plain, tmp_path / form, form))
        inspect(str(plain), Choice(), tmp_path / "a.svg")
        truncate(str(plain), Choice(), tmp_path / "cut", keep="50%", budget=None)
