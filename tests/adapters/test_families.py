"""Names of real models, as Transformers builds them, sorted into attention and feed-forward."""

import pytest
import torch
import transformers
from tiny import CONFIGS, tiny_model

from rankwise.adapters.attach import find_matrices
from rankwise.adapters.families import block_index, family, is_attention

# Last two parts of every matrix in a block that belongs to attention, and of all others.
BERT = ({"self.query", "self.key", "self.value", "output.dense"}, {"intermediate.dense", "output.dense"})
TINY = {
    "bert": BERT,
    "roberta": BERT,
    "deberta": (
        {"self.query_proj", "self.key_proj", "self.value_proj", "self.pos_key_proj", "self.pos_query_proj"}
        | {"output.dense"},
        {"intermediate.dense", "output.dense"},
    ),
    "distilbert": (
        {"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"},
        {"ffn.lin1", "ffn.lin2"},
    ),
    "llama": (
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
        {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    ),
    "gpt2": ({"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
    "opt": (
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"},
        {"layers.fc1", "layers.fc2"},
    ),
    "t5": (
        {f"{kind}.{leaf}" for kind in ("SelfAttention", "EncDecAttention") for leaf in "qkvo"},
        {"DenseReluDense.wi", "DenseReluDense.wo"},
    ),
}


def ends(names):
    return {".".join(family(name).split(".")[-2:]) for name in names}


@pytest.mark.parametrize("kind", CONFIGS)
def test_tiny_models(kind):
    names = list(find_matrices(tiny_model(kind)))
    attention = [name for name in names if is_attention(name)]
    others = [name for name in names if not is_attention(name)]
    assert (ends(attention), ends(others)) == TINY[kind]
    assert {block_index(name) for name in names} == {0, 1}
    for name in names:  # every family has a matrix in each block
        assert {block_index(other) for other in names if family(other) == family(name)} == {0, 1}


REAL = {
    "Albert": ({}, {"albert_layers.ffn", "albert_layers.ffn_output"}),
    "ModernBert": ({"num_hidden_layers": 1}, {"mlp.Wi", "mlp.Wo"}),
    "GPTNeoX": ({"num_hidden_layers": 1}, {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
    "Falcon": ({"num_hidden_layers": 1}, {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
    "Qwen3": ({"num_hidden_layers": 1}, {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
    "Phi3": ({"num_hidden_layers": 1}, {"mlp.gate_up_proj", "mlp.down_proj"}),
    "Bart": ({"encoder_layers": 1, "decoder_layers": 1}, {"layers.fc1", "layers.fc2"}),
    "XLM": ({"n_layers": 1}, {"ffns.lin1", "ffns.lin2"}),
    "CTRL": ({"n_layer": 1}, {"h.ffn"}),
    "Longformer": ({"num_hidden_layers": 1, "attention_window": [4]}, {"intermediate.dense", "output.dense"}),
}


@pytest.mark.parametrize("kind", REAL)
def test_real_models_at_their_default_names(kind):
    settings, feed_forward = REAL[kind]
    config = getattr(transformers, f"{kind}Config")(**settings)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}Model")(config)
    names = list(find_matrices(model))
    assert ends(name for name in names if not is_attention(name)) == feed_forward
    assert any(is_attention(name) for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("roberta.encoder.layer.11.attention.output.dense", True),
        ("roberta.encoder.layer.11.output.dense", False),
        ("model.layers.3.self_attn.o_proj", True),
        ("transformer.h.0.mlp.c_proj", False),
        ("decoder.block.2.layer.1.EncDecAttention.k", True),
        ("model.layers.0.block_sparse_moe.experts.7.w1", False),
        ("rwkv.blocks.0.attention.key", True),
        ("rwkv.blocks.0.feed_forward.key", False),
        ("layers.4.wqkv", True),
        ("attention_model.blocks.0.fc1", False),
        ("gated_cross_attn_layers.0.mlp.up_proj", False),
        ("perceiver.cross_attention.mlp.dense1", False),
        ("model.layers.0.mixer.in_proj", False),
        ("query", True),
        ("lm_head", False),
    ],
)
def test_names(name, expected):
    assert is_attention(name) is expected


def test_family_and_block():
    name = "decoder.block.12.layer.1.EncDecAttention.k"
    assert family(name) == "decoder.block.layer.EncDecAttention.k"
    assert block_index(name) == 12
    assert block_index("classifier.dense") is None
    assert family("classifier.dense") == "classifier.dense"
    assert family("layer1.conv2") == "layer1.conv2"  # digits inside a part are no index
