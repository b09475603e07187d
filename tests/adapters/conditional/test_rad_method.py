"""The method: two shares met, a budget held, state and exports."""

import pytest
import torch
from gated import context
from peft import PeftModel
from ranked import KINDS
from tiny import batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.conditional.decisions import decisions_of
from rankwise.adapters.conditional.rad_hyper import HYPER
from rankwise.adapters.conditional_method import CLOSE
from rankwise.adapters.deciding_method import MEASURED, TOLERANCE
from rankwise.adapters.methods.radlora import RadloraConfig
from rankwise.errors import AllocationError, BudgetError, ConfigError
from rankwise.training.callback import load_method, save_method
from rankwise.training.fit import fit

FAST = {"budget": "r=8", "router_hidden": 1, "warmup": 4, "annealing": 20, "total_steps": 28}
TARGETS = {"few": (0.25, 0.08), "half": (0.5, None), "most": (0.8, 0.6)}


def made(model=None, **fields):
    return build("radlora", model, **(FAST | fields))


def trained(folder, model=None, **fields):
    method = made(model, **fields)
    changes = settings(total_steps=FAST["total_steps"])
    fit(method, tiny_tokenizer(), tiny_data(40), {"main": tiny_data(9, seed=3)}, changes, work_dir=folder)
    return method


@pytest.fixture(scope="module", params=KINDS)
def done(request, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("work"), **KINDS[request.param])


@pytest.mark.parametrize("family", ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llama", "gpt2"))])
@pytest.mark.parametrize("name", [n if n == "half" else pytest.param(n, marks=pytest.mark.slow) for n in TARGETS])
def test_both_shares_end_at_their_targets(tmp_path, family, name):
    active, rank = TARGETS[name]
    method = trained(tmp_path, tiny_model(family), active=active, rank_budget=rank)
    method.check_finished()
    training = tiny_data(40)
    batches = [{k: torch.tensor([row[k]]) for k in ("input_ids", "attention_mask")} for row in training]
    found = decisions_of(method.model, batches)
    assert found.share == pytest.approx(active, abs=TOLERANCE)
    share = float(found.ranks.double().mean()) / found.full[0]
    assert share == pytest.approx(active / 2 if rank is None else rank, abs=TOLERANCE)
    assert found.share == pytest.approx(method.measured, abs=1e-6)
    assert share == pytest.approx(method.measured_rank, abs=1e-6)
    assert len(found.ranks.unique(dim=0)) > 1, "decisions differ between inputs"


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("budget", ["r=8", "r=11", "9500", "100 ranks"])
def test_at_most_the_budget_and_half_of_what_is_replaced(family, budget):
    method = made(tiny_model(family), budget=budget)
    count = method.parameter_count().final
    assert count == sum(p.numel() for n, p in method.model.named_parameters() if ".lora_" in n)
    lora = build("lora", tiny_model(family), budget=budget).parameter_count().final
    half = method.peft.r * sum(method.costs.values()) // 2
    full = min(matrix.full_rank for matrix in method.matrices.values())
    assert count <= min(lora, half)
    assert count > min(lora, half) - max(method.costs.values())
    assert method.peft.r <= full
    assert half >= lora or method.peft.r == full, "half of what is replaced is the budget"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budget": "r=2", "router_hidden": 4}, "routers take .* and the smallest banks"),
        ({"router_hidden": 9}, "make the routers smaller"),
        ({"r_max": 40}, "r_max is 40, and one of the matrices has full rank 32"),
        ({"active": 0.5, "rank_budget": 0.02}, "0.64 components on average"),
        ({"generator": "hyper", "generator_rank": 10**9}, "generator_rank is 1000000000, .* use less than 32"),
        ({"generator": "hyper", "generator_rank": 60}, "generator_rank is 60, and networks factorised"),
    ],
)
def test_budgets_that_cannot_be_met(fields, words):
    with pytest.raises(BudgetError, match=words):
        made(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank_budget": 0.5}, r"rank_budget: 0.5 has to be below `active` \(0.5\)"),
        ({"rank_budget": 0.05, "r_max": 8}, "rank_budget: 0.05 has to be below"),
        ({"generator_rank": 3}, "belongs to `generator: hyper`"),
        ({"warmup": 0.9}, "warmup has to end before"),
        ({"temperature": (float("nan"), 1.0)}, "must be positive and finite"),
        ({"depth": "block", "block": {"temperature": (2.0, float("inf"))}}, "must be positive and finite"),
        ({"depth": "block", "active": 0.3}, "method.active: belongs to `depth: module`, and depth is `block`"),
        ({"block": {"keep": 0.3}}, "method.block: belongs to `depth: block`, and depth is `module`"),
        ({"depth": "block", "block": {"full_depth": 0.9}}, "block.full_depth"),
    ],
)
def test_settings_that_make_no_sense(fields, words):
    with pytest.raises(ConfigError, match=words):
        made(**fields)


def test_hyper_is_not_bound_by_the_budget_and_says_what_it_takes(caplog):
    bank, hyper, factorised = (made(**fields) for fields in KINDS.values())
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2, "before training, and of the bank nothing"
    assert f"its generator has {hyper.parameter_count().final:,} parameters" in said[0]
    assert bank.peft.r == hyper.peft.r == factorised.peft.r
    counts = [method.parameter_count().final for method in (bank, factorised, hyper)]
    assert counts == sorted(counts)
    assert counts[0] <= hyper.target.total < counts[1] < counts[2] / 3


def test_parameters_of_a_schedule():
    method = made()
    seen = []
    for step in range(1, 29):
        seen.append((context(method.model).all_open, method.peft.temperature, context(method.model).temperature))
        method.before_optimizer_step(step)
    assert [each[0] for each in seen] == [True] * 4 + [False] * 24
    assert all(of_rank == of_gate for _, of_rank, of_gate in seen), "nothing is known of either's logits"
    assert (seen[0][1], seen[-1][1]) == pytest.approx((2.0, 0.1))
    assert (method.rank_tracker.first, method.rank_tracker.last) == (4, 20)


def test_temperatures_are_in_units_of_what_they_divide():
    method = made()
    method.step = 7
    with torch.no_grad():
        for i, layer in enumerate(adapted_layers(method.model).values()):
            bias = layer.lora_router[ADAPTER].up_bias
            bias[0], bias[1:17] = 3.0 * i, torch.arange(16) * 0.1 + 5
    count = len(method.matrices)
    method._at(8)
    method.model.train()(**batch())
    method.penalty()
    method.before_optimizer_step(8)
    of_gates, of_ranks = 3 * torch.arange(count).double().std(correction=0), torch.arange(16.0).std(correction=0) / 10
    assert method.spreads == pytest.approx((float(of_gates), float(of_ranks)), rel=1e-4)
    course = 2.0 * (0.1 / 2.0) ** ((9 - 4) / 16)
    assert context(method.model).temperature == pytest.approx(course * float(of_gates), rel=1e-4)
    assert method.peft.temperature == pytest.approx(course * float(of_ranks), rel=1e-4)
    assert method.price_temperature() == pytest.approx(context(method.model).temperature * (1 - 0.9 * 5 / 16), rel=1e-6)


def test_penalty_and_price_act_on_ranks():
    method = made(entropy=0.0)
    method.step = 24
    method._at(25)
    model = method.model.train()
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_router[ADAPTER].up_bias[16] = 0.2  # sixteen components are likelier
    model(**batch())
    penalty = method.penalty()
    chance = torch.tensor([0.0] * 15 + [0.2]).div(0.1).softmax(0)
    share = float(chance @ torch.arange(1.0, 17)) / 16
    opened = float(torch.sigmoid(torch.tensor(2.0 / 0.1)))
    assert share > 0.6
    assert float(penalty.detach()) == pytest.approx((opened - 0.5) ** 2 / 2 + (share - 0.5) ** 2 / 2, rel=1e-4)
    penalty.backward()
    gradient = adapted_layers(model)["bert.encoder.layer.0.attention.self.query"].lora_router[ADAPTER].up_bias.grad
    assert gradient[16] > 0 > gradient[1], "fewer components"
    before = method.rank_tracker.price
    method.before_optimizer_step(25)
    assert method.peft.rank_price == method.rank_tracker.price > before
    assert method.penalty() is None, "nothing was recorded since"


def test_entropy_of_ranks_is_rewarded_for_a_while():
    penalties = []
    for entropy in (0.0, 0.5):
        method = made(entropy=entropy)
        method.step = 11
        method._at(12)
        torch.manual_seed(0)
        method.model.train()(**batch())
        penalties.append(float(method.penalty().detach()))
    of_gates = torch.distributions.Bernoulli(logits=torch.tensor(2.0 / context(method.model).temperature)).entropy()
    of_ranks = torch.log(torch.tensor(16.0))
    assert penalties[0] - penalties[1] == pytest.approx(0.5 * 0.5 * float(of_gates + of_ranks), rel=1e-4)


def test_state_goes_on_where_it_was(done, tmp_path):
    save_method(done, tmp_path)
    kind = {"generator": done.config.generator, "generator_rank": done.config.generator_rank}
    fresh = made(**kind)
    load_method(fresh, tmp_path)
    assert torch.equal(logits(fresh.model), logits(done.model))
    assert fresh.peft.to_dict() == done.peft.to_dict()
    assert (fresh.measured, fresh.measured_rank) == (done.measured, done.measured_rank)
    assert fresh.rank_tracker == done.rank_tracker
    assert fresh.spreads == done.spreads
    assert not fresh.context.recording  # what is seen in use would be kept for ever
    fresh.check_finished()
    fresh.load_state_dict(done.state_dict() | {"rankwise.peak": torch.tensor(10**9)})
    assert fresh.parameter_count().peak == 10**9
    for name, pair in done.static_pairs().items():
        assert torch.equal(fresh.static_pairs()[name].b, pair.b)


def test_static_is_plain_lora_of_average_weights(done, tmp_path):
    done.export(tmp_path / "static", "static")
    found = PeftModel.from_pretrained(tiny_model(), tmp_path / "static")
    assert type(found.peft_config[ADAPTER]).__name__ == "LoraConfig"
    assert float((logits(found) - logits(tiny_model())).abs().max()) > 1e-4
    average = mean_weights(done)
    for name, layer in adapted_layers(done.model).items():
        if done.config.generator == "bank":
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        else:
            hyper = getattr(layer, HYPER)[ADAPTER]
            a, b = hyper.average()
            assert hyper.centre.any()
        expected = layer.scaling[ADAPTER] * b @ average[name].diag() @ a
        stock = found.base_model.model.get_submodule(name)
        actual = stock.get_delta_weight(ADAPTER)
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def mean_weights(method):
    """Gate · mask · coefficient over the training examples, one by one."""
    rows = []
    for row in tiny_data(40):
        method.model.eval()(**{k: torch.tensor([row[k]]) for k in ("input_ids", "attention_mask")})
        rows.append({name: made_.weights[0] for (name, _), made_ in context(method.model).kept.items()})
    assert len(rows) <= MEASURED
    return {name: torch.stack([row[name] for row in rows]).mean(0) for name in rows[0]}


def test_a_share_that_was_missed_is_an_error(done):
    measured = done.measured_rank
    try:
        done.measured_rank = measured + TOLERANCE + 0.02
        with pytest.raises(AllocationError, match=r"mean rank of .* its target is 25.0%"):
            done.check_finished()
        done.measured_rank = None
        with pytest.raises(AllocationError, match="mean rank"):
            done.check_finished()
    finally:
        done.measured_rank = measured
    assert abs(done.measured_rank - 0.25) <= TOLERANCE
    assert abs(done.measured - 0.5) <= max(CLOSE, TOLERANCE)


def test_block_mode_is_another_method():
    config = RadloraConfig(depth="block", budget="r=8", block={"router_hidden": 2, "bypass_rank": 1})
    method = config.build(tiny_model(num_hidden_layers=3), total_steps=28, seed=0)
    assert type(method).__name__ == "BlockMethod"
