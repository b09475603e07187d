"""Sketches of code: what rules say of PEFT and torch is true, and nothing is ever executed."""

import inspect

import pytest
from research.checks.judged import numbers

from rankwise.costs.formulas import adapter_share, bert_block
from rankwise.research.artefacts import Hypothesis
from rankwise.research.checks import check_hypothesis
from rankwise.research.checks import facts as own_facts
from rankwise.research.checks.sketch import constants, evaluate, parse, source
from rankwise.research.checks.sketch_peft import FACTORS, UPDATE_LAYER


def judge(code, method="LoRA adapters."):
    said = Hypothesis(
        open_problems="a",
        method=method,
        experimental_setup="c",
        expected_result="d",
        primary_metric="accuracy",
        experimental_code=code,
    )
    return check_hypothesis(said)


def test_what_is_said_of_peft_is_true():
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from torch import nn

    layer = LoraLayer(nn.Linear(4, 6))
    for name in FACTORS[:2]:
        assert isinstance(getattr(layer, name), nn.ModuleDict)
    assert not hasattr(nn.ModuleDict(), "register_hook")
    assert not hasattr(nn.ModuleDict(), "weight")
    assert not hasattr(LoraLayer, "forward")
    required = [
        p.name
        for p in inspect.signature(LoraLayer.update_layer).parameters.values()
        if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD
    ]
    assert tuple(required[1:]) == UPDATE_LAYER
    assert next(iter(list(inspect.signature(LoraLayer.__init__).parameters)[1:])) == "base_layer"
    assert {"target_modules", "lora_alpha", "lora_dropout", "task_type"} <= set(
        inspect.signature(LoraConfig).parameters
    )


def test_what_is_said_of_torch_is_true():
    import torch
    from torch.nn import functional

    p = torch.tensor([0.3], requires_grad=True)
    (p.detach() * 0 + p.detach() - p).sum().backward()
    assert p.grad.item() == -1
    rows, k = torch.arange(12.0).reshape(1, 3, 4), torch.tensor([1])
    one = rows.gather(1, k.view(-1, 1, 1).expand(-1, 1, 4))
    assert one.shape == (1, 1, 4)
    assert torch.equal(one[0, 0], rows[0, 1])
    with pytest.raises(IndexError):
        one.squeeze(1).transpose(1, 2)
    with pytest.raises(RuntimeError, match="ambiguous"):
        max(torch.tensor([1, 2]), 1)
    with pytest.raises(RuntimeError):
        functional.linear(torch.ones(2, 5, 4), torch.ones(2, 4, 4))
    assert not torch.multinomial(torch.tensor([0.5, 0.5], requires_grad=True), 1).requires_grad


def test_our_share_is_that_of_the_cost_formulas():
    for width in (384, 768):
        assert own_facts.adapter_share(width, 8) == pytest.approx(adapter_share(bert_block(width), 8))


def test_sizes_of_targets_are_those_of_the_blocks():
    from rankwise.experiments.model_facts import model_facts

    facts = model_facts("bert-base-uncased")
    every = own_facts.targets(facts)[-1]
    block = bert_block(facts.hidden_size)
    assert every.matrices == facts.matrices == facts.layers * len(block)
    assert every.rank_cost == facts.layers * sum(one.cost for one in block)
    assert every.weights == facts.layers * sum(one.in_features * one.out_features for one in block)


def test_a_sketch_is_never_executed(tmp_path):
    mark = tmp_path / "ran"
    code = f"""
open({str(mark)!r}, "w").write("x")
import os
os.abort()
raise SystemExit(3)

class A:
    open({str(mark)!r}, "w").write("y")
    def step_callback(self, x=exit()): ...
"""
    judge(code)
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        "(" * 50_000,
        "x = " + "-" * 50_000 + "1",
        "x = " + "+".join(["a"] * 5_000),
        "a" + ".b" * 5_000,
        "if x:\n" * 3_000,
        "\x00",
        "x = 1\n" * 15_000,
        "λ = λ_c * gp.mean()",
        "```python\nx = [\n```",
        "class A(LoraLayer): pass\nA(*a, **k)",
        "x.gather(1, i.expand())",
        "F.linear()",
        "max()",
        "setattr(a, b, c)",
        "LoraConfig(**kwargs)",
        "m.update_layer(*args)",
        "nn.Linear(h, 1e300 * r_max * (d_in - d_out) * 1e300)",
        "f'{x!r:{y}}'",
        "def f(a=1, /, *, b=2): ...",
        "lora_B[:k]",
    ],
    ids=range(20),
)
def test_hostile_sketches_are_survived(code):
    for one in judge(code, "W' = W0 + g * B A, L1. Σ_l p. A tiny hyper-network generates A and B."):
        assert len(one.message) < 2_000


def test_indentation_and_fences_are_repaired():
    assert parse("    x = 1\n    y = 2\n").repaired
    assert parse("Here:\n```python\nx = 1\n```\n").tree is not None
    assert parse("x = (1").problem


def test_numbers_of_a_sketch():
    sketch = parse("def f(a, rank=8, *, warmup_steps=10): ...\ng(total_rank=5)\nbeta = 0.9\nrank = 4\nx = True\n")
    assert constants(sketch) == {"rank": 8, "warmup_steps": 10, "total_rank": 5, "beta": 0.9}
    product = parse("(d + self.d) * r - 2").tree.body[0].value
    assert evaluate(product, {"d": 3.0, "r": 2.0}) == 10.0
    assert evaluate(product, {"d": 3.0}) is None
    assert source(product) == "(d + self.d) * r - 2"


RIGHT = """
class Wrapped(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.register_buffer("seen", torch.zeros(1))
        self.handle = base.lora_B["default"].weight.register_hook(self.note)

    def note(self, gradient):
        return gradient

    def forward(self, x, mask):
        out = self.base(x)
        keep = (mask > 0).nonzero()
        update = self.base.lora_B["default"](self.base.lora_A["default"](x)) * self.base.scaling["default"]
        return out + update

    def stop(self):
        self.handle.remove()


def ranks(layer, optimizer):
    layer.update_layer("default", 4, 8, config)
    optimizer.add_param_group({"params": layer.parameters()})
    return layer.lora_B["default"].weight[:, :4]


hard = (torch.rand_like(p) < p).float()
gate = hard + p - p.detach()
best = max(3, 4)
mean = scores.mean(1)
"""


def test_right_code_is_left_alone():
    assert numbers(judge(RIGHT)) == set()


STRAIGHT = ["h + p - p.detach()", "(h - p).detach() + p", "h - p.detach() + p", "p + (h - p).detach()"]
CROOKED = ["h.round() - p + p.detach()", "p.detach() + hard.float() - p", "(x < p).float() + p.detach() - p"]


@pytest.mark.parametrize("code", STRAIGHT)
def test_straight_through_in_any_order(code):
    assert 56 not in numbers(judge(f"g = {code}"))


@pytest.mark.parametrize("code", CROOKED)
def test_wrong_signs_in_any_order(code):
    assert 56 in numbers(judge(f"g = {code}"))


LEGITIMATE = {
    "a layer of one's own": """
class Low(nn.Module):
    def __init__(self, base, r):
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))

    def update_layer(self, r):
        return self.lora_A.weight.shape[0] == r
""",
    "replacing inside the parent": """
for path, layer in model.named_modules():
    if isinstance(layer, nn.Linear) and "classifier" not in path:
        parent = model.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.split(".")[-1], Low(layer, 8))
""",
    "picking the last token": """
def pooled(hidden, lengths):
    index = lengths.view(-1, 1, 1)
    return hidden.gather(1, index.expand(-1, 1, hidden.size(-1))).squeeze(1)
""",
    "drawing data": "rows = torch.multinomial(weights, 100)\nbatch = data[rows]",
    "scalars": "total = mask.sum()\nmean = loss / max(total, 1)\nn, m = sizes()\nmax(n, 1)",
    "a block's residual": """
class Block(nn.Module):
    def forward(self, hidden_states):
        out = self.attention(hidden_states)
        hidden_states = hidden_states + out
        return hidden_states + self.mlp(hidden_states)
""",
    "a decoder": 'model = get_peft_model(AutoModelForCausalLM.load(n), LoraConfig(r=4, target_modules="all-linear",'
    " lora_alpha=8, lora_dropout=0.0))",
    "a scale that is learned": """
class Scaled(nn.Module):
    def forward(self, x):
        out = self.lora_B(self.lora_A(x))
        return self.base(x) + self.gate * out
""",
}


@pytest.mark.parametrize("code", LEGITIMATE.values(), ids=LEGITIMATE)
def test_legitimate_code_is_left_alone(code):
    assert [one.message for one in judge(code)] == []


WORDS = [
    "Gradients are clipped to a gradient norm of 1.0. Every matrix has rank 8.",
    "Baselines are AdaLoRA and truncation by an SVD.",
    "AdaLoRA trains updates in the form of an SVD.",
    "Training examples are sampled at random. The class is the argmax of the logits.",
    "The KV cache of hidden states is reused for the same prompt.",
    "Steps are rounded up. The budget is the number of adapter parameters.",
    "Neither LoRA nor this method changes inference: both merge.",
]


@pytest.mark.parametrize("method", WORDS)
def test_legitimate_words_are_left_alone(method):
    assert [one.message for one in judge("", method)] == []
