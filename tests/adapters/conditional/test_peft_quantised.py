"""Gated adapters on quantised base weights, through PEFT's own layers (see `tests/adapters/test_quantised.py`)."""

import importlib.util

import pytest
import torch
from gated import decisions, gated, gated_config, tokens
from peft import PeftModel
from tiny import build, logits, settings, tiny_data, tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from rankwise.training.fit import fit

SIZES = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes packs at least 64 inputs
QUIET = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NEEDS = {"4bit": "bitsandbytes", "8bit": "bitsandbytes", "int8": "torchao"}
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt", "ignore:.*torchao.*", "ignore::FutureWarning", "ignore:.*_check_is_size.*"
)


def settings_of(kind):
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["classifier"])
    return BitsAndBytesConfig(**{f"load_in_{kind}": True}, llm_int8_skip_modules=["classifier"])


@pytest.fixture(params=NEEDS)
def quantised(request, tmp_path):
    """Makes tiny BERTs with quantised blocks."""
    needed = NEEDS[request.param]
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed (pip install --no-deps {needed})")
    tiny_model(**QUIET).save_pretrained(tmp_path / "base")
    return lambda: AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", quantization_config=settings_of(request.param)
    )


@torch.no_grad()
def out(model, inputs=None):
    return model.eval()(**(inputs or tokens())).logits


@pytest.mark.parametrize("kind", ["module", "shared"])
def test_closed_gates_are_the_quantised_model_and_checkpoints_decide_alike(quantised, tmp_path, kind):
    model = gated(quantised(), gated_config("bert", router=kind, task_type="SEQ_CLS"))
    with model.disable_adapter():
        base = out(model)
    expected, gates = out(model), decisions(model)
    assert float((expected - base).abs().max()) > 1e-3
    assert any(0 < float(each.mean()) < 1 for each in gates.values())
    model.peft_config["default"].threshold = 1.0
    assert torch.equal(out(model), base)
    model.peft_config["default"].threshold = 0.5
    model.save_pretrained(
        tmp_path / "adapter"
    )  # last: bitsandbytes unpacks 4-bit weights to save, and rounds otherwise
    again = PeftModel.from_pretrained(quantised(), tmp_path / "adapter")
    assert torch.equal(out(again), expected)
    assert all(torch.equal(each, gates[key]) for key, each in decisions(again).items())


@pytest.mark.parametrize("kind", ["module", "shared"])
def test_training(quantised, tmp_path, kind):
    fields = {"budget": "r=8", "warmup": 2, "annealing": 9, "router": kind}
    method = build("cogalora", quantised(), **fields)
    fit(method, tiny_tokenizer(), tiny_data(20), {}, settings(), work_dir=tmp_path / "work")
    method.check_finished()
    method.export(tmp_path / "out")
    expected = logits(method.model)
    loaded = PeftModel.from_pretrained(quantised(), tmp_path / "out")
    logits(loaded)
    loaded.state_dict()  # as above
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
