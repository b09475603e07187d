"""An example's output depends neither on the others in its batch nor on padding; its decisions not at all."""

import pytest
import torch
from gated import NO_DROPOUT, context, decisions, gated, gated_config, padded, rows_of, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

FAMILIES = ("bert", "llama", "gpt2")
KINDS = ("module", "shared")
ROWS, LENGTH = 8, 9
MODELS = {}


def model_of(family, kind):
    if (family, kind) not in MODELS:
        config = gated_config(family, router=kind, task_type="SEQ_CLS", fan_in_fan_out=family == "gpt2")
        MODELS[family, kind] = gated(tiny_model(family, **NO_DROPOUT[family]), config)
    return MODELS[family, kind]


def texts():
    """Of lengths from 3 to 9, padded on the right."""
    inputs = tokens(ROWS, LENGTH)
    for row in range(ROWS):
        size = 3 + row % 7
        inputs["attention_mask"][row, size:] = inputs["input_ids"][row, size:] = 0
    return inputs


@torch.no_grad()
def answer(model, inputs):
    found = model(**inputs).logits
    return found, decisions(model)


def agree(model, inputs, index, logits, gates):
    """`inputs`, whose rows are those of `index`, get the same answers as in the batch of all."""
    some_logits, some_gates = answer(model, inputs)
    torch.testing.assert_close(some_logits, logits[index], rtol=0, atol=1e-5)
    assert some_gates.keys() == gates.keys()
    for key, value in some_gates.items():
        assert torch.equal(value, gates[key][index]), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=2 * ROWS), right=st.integers(0, 5))
def test_others_and_padding_on_the_right(family, kind, rows, right):
    """Any batch of any of the texts, in any order, more than once too."""
    model = model_of(family, kind)
    index = torch.tensor(rows)
    agree(model, padded(rows_of(texts(), index), right), index, *answer(model, texts()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gates_differ_between_the_texts(family, kind):
    _, gates = answer(model_of(family, kind), texts())
    assert len(torch.stack(list(gates.values())).unique(dim=1).T) >= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [1, 4])
def test_padding_on_the_left(family, kind, left):
    """Positions are given, as `generate` gives them; BERT and GPT-2 would count the padding.

    BERT's classifier reads the first token, so padding there gives it another logit, and its decisions alone are asked.
    """
    model = model_of(family, kind)
    inputs = padded(tokens(ROWS, LENGTH), left, left=True)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    logits, gates = answer(model, tokens(ROWS, LENGTH))
    if family == "bert":
        logits, _ = answer(model, inputs)
    agree(model, inputs, torch.arange(ROWS), logits, gates)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_by_one(family):
    model = model_of(family, "module")
    logits, gates = answer(model, texts())
    for row in range(ROWS):
        size = int(texts()["attention_mask"][row].sum())
        alone = {name: value[row : row + 1, :size] for name, value in texts().items()}
        agree(model, alone, torch.tensor([row]), logits, gates)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_as_input(family):
    model = model_of(family, "module")
    logits, gates = answer(model, tokens())
    embedded = model.get_input_embeddings()(tokens()["input_ids"])
    agree(
        model, {"inputs_embeds": embedded, "attention_mask": tokens()["attention_mask"]}, torch.arange(6), logits, gates
    )


@pytest.mark.parametrize("additive", [False, True])
def test_masks_made_ready_for_attention(additive):
    """Four dimensions, as a static cache makes them: of booleans, or of what is added to scores."""
    model = model_of("llama", "module")
    inputs = padded(tokens(), 3, left=True)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    length = inputs["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal[None, None] & inputs["attention_mask"].bool()[:, None, None, :]
    allowed |= torch.eye(length, dtype=torch.bool)
    _, wanted = answer(model, inputs)
    floor = torch.finfo(torch.float32).min
    mask = torch.where(allowed, 0.0, floor) if additive else allowed
    _, found = answer(model, inputs | {"attention_mask": mask})
    assert all(torch.equal(gates, wanted[key]) for key, gates in found.items())
    assert context(model).kept
