"""Banks: how large they are, where windows lie, and what training them means."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from peft.tuners.lora import LoraLayer
from ranked import ranked, ranked_config
from tiny import tiny_model

from rankwise.adapters.conditional.rad_bank import BANKS, Bank, Window, bank_users, fill_banks, spread_windows
from rankwise.adapters.conditional.router import router_cost
from rankwise.errors import BudgetError

SIZES = {
    f"{i}.{kind}": size for i in range(6) for kind, size in {"q": (12, 12), "up": (12, 40), "down": (40, 12)}.items()
}


def spent(banks):
    return sum(int(bank.split()[1]) * count for bank, count in banks.items())


@given(st.integers(2, 6), st.integers(0, 1500))
def test_banks_spend_what_there_is_but_less_than_a_component(rank, more):
    least = rank * (12 + 12 + 40 + 40)
    most = rank * sum(a + b for a, b in SIZES.values())
    banks = fill_banks(SIZES, rank, least + more)
    users = bank_users(SIZES)
    assert users == {"in 12": 12, "out 12": 12, "out 40": 6, "in 40": 6}
    assert all(rank <= count <= users[bank] * rank for bank, count in banks.items())
    assert min(least + more, most) - 40 < spent(banks) <= least + more


def test_banks_share_in_proportion_to_their_users():
    banks = fill_banks(SIZES, 4, 3000)
    assert banks["in 12"] == pytest.approx(2 * banks["in 40"], abs=4)


def test_too_little_for_a_window_each_is_an_error():
    with pytest.raises(BudgetError, match="below the floor"):
        fill_banks(SIZES, 4, 400)


@given(st.integers(2, 5), st.integers(5, 40))
def test_windows_are_spread_evenly(rank, components):
    """Every component is seen by about as many windows as every other."""
    components = max(components, rank)
    banks = dict.fromkeys(bank_users(SIZES), components)
    windows = spread_windows(SIZES, banks)
    assert list(windows) == list(SIZES)
    seen = torch.zeros(components)
    for name, (first, _) in windows.items():
        if SIZES[name][0] == 12:
            seen[[(first + k) % components for k in range(rank)]] += 1
    mean = 12 * rank / components
    assert float((seen - mean).abs().max()) < 1 + mean / max(mean, 1)
    assert all(0 <= first < components for pair in windows.values() for first in pair)


@pytest.mark.parametrize(("first", "wraps"), [(0, False), (3, False), (5, True), (6, True)])
def test_a_window_is_a_part_of_the_ring(first, wraps):
    bank = Bank(7, 5, 0.1)
    rows = torch.stack([bank.weight.detach()[(first + k) % 7] for k in range(4)])
    a, b = Window(bank, first, 4, transposed=False), Window(bank, first, 4, transposed=True)
    assert torch.equal(a.weight, rows)
    assert torch.equal(b.weight, rows.t())
    assert (a.weight._base is bank.weight) != wraps
    assert list(a.parameters()) == [], "the bank is saved and trained once, by its owner"
    a.weight[0].sum().backward()
    assert bank.weight.grad.sum(1).tolist() == [5.0 * (i == first) for i in range(7)]


def owners(model, container):
    return [m for m in model.modules() if isinstance(m, LoraLayer) and "default" in getattr(m, container, {})]


def test_the_first_layer_of_a_width_owns_its_bank():
    model = get_peft_model(tiny_model(), ranked_config())
    names = dict(model.base_model.model.named_modules())
    config = model.peft_config["default"]
    for side, container in BANKS.items():
        position = 0 if side == "in" else 1
        widths = {(m.in_features, m.out_features)[position] for m in names.values() if isinstance(m, LoraLayer)}
        banks = [layer.lora_bank_A if side == "in" else layer.lora_bank_B for layer in owners(model, container)]
        assert {bank["default"].weight.shape[1] for bank in banks} == widths
        assert len(banks) == len(widths)
        for bank in banks:
            assert len(bank["default"].weight) == config.banks[f"{side} {bank['default'].weight.shape[1]}"]
    assert list(config.windows) == [name for name, m in names.items() if isinstance(m, LoraLayer)]


@pytest.mark.parametrize("layers", [4, 8])
def test_by_default_banks_and_routers_are_half_of_what_they_replace(layers):
    config = ranked_config(r=16, lora_alpha=32, router_hidden=1)
    model = get_peft_model(tiny_model(num_hidden_layers=layers), config)
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, LoraLayer)]
    half = 16 * sum(map(sum, sizes)) // 2
    counted = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    assert half - 64 < counted <= half
    assert counted == spent(config.banks) + sum(router_cost(a, 1, 33) for a, _ in sizes)


def test_sizes_can_be_given():
    banks = {"in 32": 9, "out 32": 5, "out 64": 4}
    model = get_peft_model(tiny_model(), ranked_config(banks=banks))
    held = [getattr(m, c)["default"].weight for c in BANKS.values() for m in owners(model, c)]
    assert sorted(tuple(weight.shape) for weight in held) == [(4, 64), (5, 32), (9, 32)]


def test_starts_as_the_base_model_from_lora_s_own_start():
    model = get_peft_model(tiny_model(), ranked_config())
    for layer in owners(model, "lora_bank_A"):
        weight = layer.lora_bank_A["default"].weight
        assert 0.9 < float(weight.detach().abs().max()) * weight.shape[1] ** 0.5 <= 1
    assert all(not layer.lora_bank_B["default"].weight.any() for layer in owners(model, "lora_bank_B"))
    assert all(
        layer.lora_bank_B["default"].weight.any()
        for layer in owners(get_peft_model(tiny_model(), ranked_config(init_lora_weights=False)), "lora_bank_B")
    )


def test_every_user_trains_the_bank():
    model = ranked(tiny_model(), ranked_config()).train()
    owner = owners(model, "lora_bank_A")[0]
    bank = owner.lora_bank_A["default"].weight
    users = [m for m in model.modules() if isinstance(m, LoraLayer) and m.in_features == 32]
    assert all(layer.lora_A["default"]._bank[0] is owner.lora_bank_A["default"] for layer in users)
    loss = sum(layer.lora_A["default"].weight.sum() * (i + 1) for i, layer in enumerate(users))
    loss.backward()
    expected = torch.zeros(len(bank))
    for i, layer in enumerate(users):
        for k in range(4):
            expected[(layer.lora_A["default"].first + k) % len(bank)] += i + 1
    torch.testing.assert_close(bank.grad, expected[:, None].expand_as(bank))


def test_windows_of_another_model_are_an_error():
    config = ranked_config(windows={"other": [0, 0]}, banks={"in 32": 8, "out 32": 8, "out 64": 8})
    with pytest.raises(ValueError, match=r"windows are of another model: there is none for 'bert\.encoder"):
        get_peft_model(tiny_model(), config)


LLAMA = {"in 32": 9, "in 64": 4, "out 16": 5, "out 32": 7}
"""Of a model whose keys are narrower than its queries."""
GROUPED = ["q_proj", "k_proj", "down_proj"]


def test_modules_of_every_width_see_their_own_banks():
    """Queries, narrower keys, and a matrix that is wider at its input: (32, 32), (32, 16) and (64, 32)."""
    model = ranked(tiny_model("llama"), ranked_config(target_modules=GROUPED, banks=LLAMA))
    config, names = model.peft_config["default"], dict(model.base_model.model.named_modules())
    rings = {
        f"{side} {weight.shape[1]}": weight
        for side, container in BANKS.items()
        for weight in (getattr(m, container)["default"].weight for m in owners(model, container))
    }
    assert {bank: len(ring) for bank, ring in rings.items()} == LLAMA
    sizes = {(names[name].in_features, names[name].out_features) for name in config.windows}
    assert sizes == {(32, 32), (32, 16), (64, 32)}
    for name, (first_a, first_b) in config.windows.items():
        layer = names[name]
        a, b = rings[f"in {layer.in_features}"], rings[f"out {layer.out_features}"]
        expected = [
            torch.stack([ring[(first + k) % len(ring)] for k in range(4)])
            for ring, first in ((a, first_a), (b, first_b))
        ]
        assert torch.equal(layer.lora_A["default"].weight, expected[0])
        assert torch.equal(layer.lora_B["default"].weight, expected[1].t())


@pytest.mark.parametrize(
    ("name", "last", "words"),
    [
        ("q_proj", [8, 6], "the window of .*q_proj"),
        ("k_proj", [8, 4], "component 5 of bank `out 16`, which has 0 to 4"),
        ("down_proj", [3, 6], "component 4 of bank `in 64`, which has 0 to 3"),
    ],
)
def test_a_window_has_to_begin_in_its_own_bank_not_in_the_largest(name, last, words):
    """`last` are the last places where it may begin."""
    fields = {"target_modules": GROUPED, "banks": LLAMA}
    windows = dict(get_peft_model(tiny_model("llama"), ranked_config(**fields)).peft_config["default"].windows)
    module = next(each for each in windows if each.endswith(name))
    get_peft_model(tiny_model("llama"), ranked_config(windows=windows | {module: last}, **fields))
    side = 0 if name == "down_proj" else 1
    beyond = [first + (i == side) for i, first in enumerate(last)]
    with pytest.raises(ValueError, match=words):
        get_peft_model(tiny_model("llama"), ranked_config(windows=windows | {module: beyond}, **fields))


@pytest.mark.parametrize("given", [False, True])
def test_a_bank_that_is_missing_is_named(given):
    banks = {"in 32": 9, "out 32": 9, "out 16": 9}
    windows = None
    if given:
        made = get_peft_model(tiny_model("llama"), ranked_config(target_modules=GROUPED, banks=LLAMA))
        windows = {name: [0, 0] for name in made.peft_config["default"].windows}
    config = ranked_config(target_modules=GROUPED, banks=banks, windows=windows)
    with pytest.raises(ValueError, match=r"banks are in 32, out 32, out 16, and '.*down_proj' needs `in 64`"):
        get_peft_model(tiny_model("llama"), config)
