"""A batch of no rows gives no rows. Transformers' own attention cannot do that, so the model here is a smaller one."""

import pytest
import torch
from gated import context, fill
from peft import get_peft_model
from ranked import KINDS, enrich
from torch import nn

from rankwise.adapters.conditional import CogaloraPeftConfig, RadloraPeftConfig

WIDTH, LENGTH = 6, 5
CONFIGS = {
    "module": lambda **fields: CogaloraPeftConfig(router="module", **fields),
    "shared": lambda **fields: CogaloraPeftConfig(router="shared", **fields),
    **{kind: lambda kind=kind, **fields: RadloraPeftConfig(**KINDS[kind], **fields) for kind in KINDS},
    **{
        f"{kind}, cache": lambda kind=kind, **fields: RadloraPeftConfig(cache=4, **KINDS[kind], **fields)
        for kind in KINDS
    },
}


class Words(nn.Module):
    """`deep` sees (batch, tokens, width), `flat` the same flattened."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.deep, self.flat = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.deep(self.embed(input_ids))
        return self.flat(hidden.flatten(0, 1)).view(*input_ids.shape, 3).mean(1)


@pytest.fixture(params=CONFIGS)
def model(request):
    made = get_peft_model(Words(), CONFIGS[request.param](r=2, target_modules=["deep", "flat"]))
    fill(made)
    enrich(made)
    return made


def given(rows):
    ids = torch.randint(0, 20, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_no_rows_give_no_rows(model, training, grad):
    model.train(training)
    with torch.set_grad_enabled(grad):
        before = model(**given(3)) if not training else None
        assert model(**given(0)).shape == (0, 3)
        assert model(input_ids=given(0)["input_ids"]).shape == (0, 3)
        if before is not None:
            torch.testing.assert_close(model(**given(3)), before)


def test_no_rows_have_gradients_of_zero_and_leave_no_record(model):
    """As on a process that got no examples: its parameters take part, and the penalty is no mean over nothing."""
    model.train()
    context(model).recording = True
    model(**given(0)).sum().backward()
    assert not context(model).recorded
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and not grad.any() for grad in found)
    model(**given(2)).sum().backward()
    assert context(model).recorded
