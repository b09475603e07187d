"""Every known defect of a hypothesis, put into a repaired one in other words than the records', is found by number."""

import pytest
from research.checks.judged import changed, numbers, repaired

from rankwise.research.artefacts import Claim, Hypothesis
from rankwise.research.checks import check_hypothesis

BUDGET = "Its budget is counted in ranks. It reallocates ranks after a warm-up at a uniform rank."
UNEQUAL = (
    "Model: DeBERTa-v3-base.\nTasks: MNLI, RTE.\nBaselines: uniform LoRA with r=8, AdaLoRA, random allocation.\n"
    "The total rank budget is 100; number of matrices x 8.\nBatch 32, 3 epochs, learning rate tuned, 10 seeds.\n"
    "Metrics: accuracy."
)
EMA = "Keep an exponential moving average with beta = 0.9 over a warm-up of one epoch."
RECODE = """
class Changer:
    def __init__(self, model):
        self.scores = torch.zeros(10, device=model.device)
        for layer in layers(model):
            layer.lora_B.register_hook(self.note)

    def on_step(self):
        for layer, r in zip(self.layers, self.ranks):
            old = layer.lora_A.weight
            layer.update_layer(r=r)
            layer.lora_B["default"].weight.data[:r] = old


def build(model):
    return get_peft_model(model, LoraConfig(r=4))
"""
GATED = """
class Gated(LoraLayer):
    def forward(self, x):
        frozen = super().forward(x)
        update = self.lora_A(self.lora_B(x))
        return x + self.gates * update


def wrap(model):
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            setattr(model, path.split(".")[-1], Gated(layer.in_features, layer.out_features))


loss = loss + sum(weight.abs() for weight in model.parameters() if weight.shape == (1,))
for layer in layers:
    layer.merge()
"""
ROUTED = """
class Routed(nn.Module):
    def forward(self, x):
        p = self.router(x.mean(dim=1)) if False else self.router(x.mean(1))
        gate = torch.bernoulli(p) - p + p.detach()
        out = self.lora_B(self.lora_A(x))
        return self.base(x) + gate * out


loss = task + lam * p.mean()
""".replace("x.mean(dim=1)) if False else self.router(", "")
GENERATED = """
class Writer(nn.Module):
    def __init__(self, hidden, d_in, d_out, rank):
        self.net = nn.Linear(hidden, rank * (d_in + d_out))

    def forward(self, h, k):
        both = self.net(h).view(-1, 8, 768)
        k = torch.multinomial(self.ranks, 1)
        both = both.gather(1, k.expand(-1, 1, 768)).squeeze(1)
        size = max(k, 1)
        flipped = both.transpose(1, 2)
        weight = both.transpose(1, 2) @ both
        return x + F.linear(x, weight)


loss = task + lambda_r * (probs * torch.arange(9)).mean()
"""
GATE_TEXT = (
    "Gates on adapters (SwitchLoRA)\nW' = W0 + g * B A with one scalar gate g per module and an L1 penalty on g. "
    "Where g is zero there is no gradient, which saves time in training."
)
ROUTE_TEXT = (
    "Switched adapters (SwitchLoRA)\nA per-input router samples a gate for every LoRA module; the penalty is λ Σ_l "
    "p_l. "
    "A straight-through estimator is used, and a closed adapter receives no gradient. Inference takes the hard gate."
)
WRITE_TEXT = (
    "Written adapters (WriteLoRA)\nA per-layer router picks a rank per input from {0,...,r_max}, with r_max = 8, by "
    "the "
    "remaining r_max logits; the first logit is a binary gate, and rank 0 means that nothing is added. A tiny "
    "hyper-network "
    "(hidden->4r_max·d_in) generates A and B; it is masked so that FLOPs scale with k. The penalty is λ Σ_l E[k_l]. "
    "Ranks are sampled in training and chosen by argmax at inference. A cache keyed by the hidden state reuses factors "
    "when it repeats."
)
NARROW = (
    "Model: BERT-base-uncased.\nTask: SST-2.\nRouter: one router shared across all layers.\nBaselines: uniform LoRA "
    "with rank=8, "
    "SwitchLoRA.\nλ_a ∈ {0, 0.1}; λ_b ∈ {0, 0.2}.\nAdamW 3e-5, 3 epochs, batch 32, same seed.\nMetrics: accuracy."
)
CASES = [
    (1, "hypothesis", {"experimental_setup": UNEQUAL, "method": BUDGET}),
    (2, "hypothesis", {"experimental_setup": UNEQUAL, "method": BUDGET}),
    (3, "hypothesis", {"experimental_setup": ("r=8 on query and value", "r=8 (0.4 % of the parameters)")}),
    (4, "hypothesis", {"experimental_setup": UNEQUAL, "method": BUDGET}),
    (
        5,
        "hypothesis",
        {"experimental_setup": UNEQUAL, "method": BUDGET, "expected_result": "Parameter count: the same as AdaLoRA."},
    ),
    (6, "hypothesis", {"experimental_setup": UNEQUAL, "method": "Ranks change after a warm-up of 2,000 steps."}),
    (7, "hypothesis", {"method": ("", EMA)}),
    (
        8,
        "hypothesis",
        {"method": "Give each matrix ranks by the gradient norm of its update, ||∂L/∂Δ||, which is there for free."},
    ),
    (9, "hypothesis", {"method": "Give each matrix ranks by its gradient norm."}),
    (
        10,
        "hypothesis",
        {
            "experimental_setup": ("random allocation and reversed allocation", "truncation"),
            "method": "Ranks by gradient norm.",
        },
    ),
    (
        11,
        "hypothesis",
        {"method": "The rank budget is shared by score: ranks are rounded to the nearest whole number."},
    ),
    (
        12,
        "hypothesis",
        {"method": "A matrix whose rank shrinks keeps its factor's first columns; remaining columns are dropped."},
    ),
    (13, "hypothesis", {"method": "Where a rank shrinks, the first columns are kept."}),
    (15, "hypothesis", {"open_problems": "AdaLoRA has to compute an SVD of every update."}),
    (16, "hypothesis", {"expected_result": ("", "It has 80 % of AdaLoRA's gain.")}),
    (16, "hypothesis", {"expected_result": ("", "GradRank has +2 GLUE points over uniform LoRA.")}),
    (17, "hypothesis", {"expected_result": "Accuracy: GradRank ≈ AdaLoRA."}),
    (18, "hypothesis", {"experimental_setup": (", 10 seeds", "")}),
    (19, "hypothesis", {"experimental_setup": ("Metrics: accuracy", "Metrics: MCC")}),
    (
        20,
        "hypothesis",
        {"experimental_setup": "Model: DeBERTa-v3-base. Tasks: MNLI. Baselines: LoRA. Same learning rate for all."},
    ),
    (21, "hypothesis", {"primary_metric": ""}),
    (22, "hypothesis", {"title": "Doubly random adaptation (DoRA)", "method": "Ranks are drawn."}),
    (24, "hypothesis", {"experimental_code": RECODE}),
    (25, "hypothesis", {"experimental_code": RECODE}),
    (26, "hypothesis", {"experimental_code": RECODE}),
    (27, "hypothesis", {"experimental_code": RECODE}),
    (28, "hypothesis", {"experimental_code": RECODE}),
    (29, "hypothesis", {"experimental_code": RECODE}),
    (30, "hypothesis", {"experimental_code": RECODE}),
    (31, "hypothesis", {"experimental_code": RECODE}),
    (14, "hypothesis", {"experimental_code": RECODE}),
    (32, "hypothesis", {"experimental_setup": ("uniform LoRA with r=8 on query and value", "BitFit")}),
    (52, "refinement", {"method": GATE_TEXT}),
    (53, "refinement", {"method": GATE_TEXT}),
    (
        54,
        "refinement",
        {"method": GATE_TEXT, "expected_result": "Inference FLOPs fall by 30 %.", "experimental_setup": NARROW},
    ),
    (55, "refinement", {"experimental_code": GATED}),
    (56, "refinement", {"experimental_code": ROUTED}),
    (57, "refinement", {"method": ("", "Closed adapters are skipped."), "experimental_code": ROUTED}),
    (
        58,
        "refinement",
        {"method": ROUTE_TEXT, "expected_result": "It saves 40 % of inference FLOPs.", "experimental_setup": NARROW},
    ),
    (59, "refinement", {"method": ROUTE_TEXT, "experimental_code": ROUTED}),
    (60, "refinement", {"method": ROUTE_TEXT, "experimental_setup": NARROW, "experimental_code": ROUTED}),
    (61, "refinement", {"experimental_setup": NARROW}),
    (
        62,
        "refinement",
        {"experimental_setup": NARROW, "expected_result": "BankLoRA gains 0.4 points over uniform LoRA."},
    ),
    (
        64,
        "refinement",
        {
            "primary_metric": "accuracy with at most 30 % of the FLOPs of LoRA",
            "expected_result": "Inference FLOPs fall by 50 %.",
        },
    ),
    (
        65,
        "refinement",
        {"experimental_setup": NARROW, "expected_result": "Total rank of 20 (100 ranks for uniform LoRA)."},
    ),
    (66, "refinement", {"expected_result": "BankLoRA: 90.0 % accuracy.\nRouteLoRA: 91.0 % accuracy."}),
    (67, "refinement", {"method": WRITE_TEXT, "experimental_setup": NARROW}),
    (68, "refinement", {"method": WRITE_TEXT}),
    (69, "refinement", {"method": WRITE_TEXT}),
    (70, "refinement", {"experimental_code": GENERATED}),
    (71, "refinement", {"experimental_code": GENERATED}),
    (72, "refinement", {"experimental_code": GENERATED}),
    (73, "refinement", {"experimental_code": GENERATED}),
    (74, "refinement", {"experimental_code": GENERATED}),
    (75, "refinement", {"experimental_code": GENERATED}),
    (76, "refinement", {"experimental_code": GENERATED}),
    (77, "refinement", {"experimental_code": GENERATED}),
    (78, "refinement", {"method": WRITE_TEXT, "experimental_code": GENERATED}),
    (78, "refinement", {"experimental_setup": NARROW}),
    (79, "refinement", {"method": WRITE_TEXT}),
    (80, "refinement", {"method": WRITE_TEXT}),
    (81, "refinement", {"expected_result": ("", "BankLoRA beats DoRA-style training, and SparseLoRA by 3 points.")}),
    (81, "refinement", {"method": WRITE_TEXT, "open_problems": "Ranks are fixed."}),
    (82, "refinement", {"experimental_setup": NARROW, "expected_conclusion": "LLMs need few ranks."}),
]


def judged(kind, fields):
    record = repaired(kind)
    rounds = [one.hypothesis for one in record.rounds]
    history = rounds[:-1]
    if "expected_result" in fields and history:
        said = "RouteLoRA: 92.0 % accuracy.\nuniform LoRA: 91.0 % accuracy."
        history = [*history[:-1], changed(history[-1], expected_result=said)]
    return check_hypothesis(changed(rounds[-1], **fields), history=history, papers=record.papers)


@pytest.mark.parametrize(("number", "kind", "fields"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_a_broken_hypothesis_is_caught(number, kind, fields):
    found = judged(kind, fields)
    assert number in numbers(found), [f"{one.items} {one.message}" for one in found]


def test_cases_cover_every_number_that_hypotheses_can_raise():
    from rankwise.research.checks import RULES

    can = {item for rule in RULES if rule.on == "hypothesis" for item in rule.items}
    assert can == {case[0] for case in CASES}


def test_messages_hold_the_values():
    found = judged("hypothesis", {"experimental_setup": UNEQUAL, "method": BUDGET})
    texts = " ".join(one.message for one in found if one.rule == "budget_arith")
    for value in ("24 x 8 = 192", "72 x 8 = 576", "100 is 4.17 per matrix", "100 is 1.39 per matrix"):
        assert value in texts


def test_levels_come_in_order():
    found = judged("refinement", {"method": WRITE_TEXT, "experimental_setup": NARROW, "experimental_code": GENERATED})
    order = [("error", "warning", "note").index(one.level) for one in found]
    assert order == sorted(order)
    assert len(set(order)) == 3


def test_a_sketch_that_is_no_python_is_said_with_its_line():
    broken = Hypothesis(
        open_problems="a",
        method="b",
        experimental_setup="c",
        expected_result="d",
        primary_metric="accuracy",
        experimental_code="x = 1\nfor:\n",
    )
    (found,) = [one for one in check_hypothesis(broken) if one.rule == "static_smoke"]
    assert "line 2" in found.message
    assert found.level == "warning"


PARTS_OF_55 = (
    "applies B before A",
    "not multiplied by the scaling",
    "adds the update to the layer's input",
    "LoraLayer has no forward",
    "sizes build a layer without",
    "on the root",
    "classification head",
    "a closed adapter is added in full",
    "of that shape",
)


def test_every_fault_of_a_wrapped_layer_is_said():
    texts = [one.message for one in judged("refinement", {"experimental_code": GATED}) if 55 in one.items]
    for part in PARTS_OF_55:
        assert any(part in one for one in texts), (part, texts)


def test_a_constraint_is_held_against_what_is_expected():
    fields = {"primary_metric": "accuracy at no more than 30 % of FLOPs (at most 30 % of LoRA FLOPs)"}
    for cut, breaks in ((50, True), (80, False)):
        found = judged("refinement", {**fields, "expected_result": f"Inference FLOPs fall by {cut} %."})
        own = [one.message for one in found if one.rule == "flops_bound" and 64 in one.items]
        assert bool(own) == breaks
        if own:
            assert "leaves 50%" in own[0]


def claimed(**values):
    said = {"id": "C9", "text": "a claim", "arm": "GradRank", "reference": "uniform LoRA", **values}
    before = repaired("hypothesis").rounds[-1].hypothesis
    found = check_hypothesis(before.model_copy(update={"claims": (Claim(**said),)}))
    return {(item, one.where) for one in found for item in one.items}


def test_claims_that_are_data_are_judged_too():
    costs = {"kind": "bound", "quantity": "inference_flops", "metric": "inference_flops"}
    assert claimed(**costs, at_most=0.4) == {(54, "claims.C9")}
    assert claimed(**costs, expected=-0.3) == {(54, "claims.C9")}
    assert claimed(**costs, at_most=0.995) == set()
    assert claimed(kind="equivalence", margin=0.0) == {(17, "claims.C9")}
    assert claimed(kind="superiority", expected=0.001) == {(62, "expected_result")}
    assert claimed(kind="superiority", expected=0.02) == set()
    assert claimed(kind="superiority", reference="QuantumLoRA", expected=0.02) == {(81, "experimental_setup")}
    assert claimed(kind="superiority", reference="random_allocation", expected=0.02) == set()
    assert claimed(kind="superiority", reference="GradRank without warm-up", expected=0.02) == set()
    assert claimed(kind="not-testable", reference="the best method", reason="vague") == set()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("piece", ["x", "1-", "LoRA-", "( ", "λ ∈ {", "W' = W0 + g "])
def test_long_hostile_text_takes_no_longer_than_it_is_long(piece):
    text = (piece * 60_000)[:60_000]
    check_hypothesis(
        Hypothesis(title=text, open_problems=text, method=text, experimental_setup=text, expected_result=text)
    )
