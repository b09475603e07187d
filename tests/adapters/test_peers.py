"""Peers: PEFT's own adapters at the parameter budget, written as plain LoRA where that is exact."""

import json
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny import batch, build, logits, tiny_model
from transformers import AutoModelForSequenceClassification

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import METHODS
from rankwise.adapters.peft_types import CONFIGS, DRIVEN, count_parameters, largest_fitting, make_config, skeleton
from rankwise.allocation.budget import spent
from rankwise.errors import BudgetError, ConfigError, ModelError

SETTINGS = {
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "C3A": {"block_size": 16},
    "BOFT": {"boft_block_size": 2},
    "OFT": {"oft_block_size": 4},
    "ROAD": {"group_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
}
QUICK = ("VERA", "LOHA", "IA3", "HRA", "FOURIERFT", "PREFIX_TUNING")
NOT_HERE = {
    "ADAPTION_PROMPT": "Unsupported model type",
    "CPT": "only supports task_type = CAUSAL_LM",
    "CARTRIDGE": "needs `num_virtual_tokens`",
    "LN_TUNING": "trains 16,832 parameters",
    "OSF": "trains 14,528 parameters",
    "SHADOW": "trains 16,891 parameters at size 1",
}
UNMERGEABLE = ("LILY", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


def train(method, steps=4):
    """A few steps of AdamW with a head that learns too."""
    optimizer = torch.optim.AdamW([p for p in method.model.parameters() if p.requires_grad], lr=1e-2)
    method.model.train()
    for step in range(steps):
        torch.manual_seed(step)
        method.model(**batch(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return method


def loaded(method, folder, form, family="bert"):
    """Logits of an export, read by stock PEFT (on the untouched base model) or Transformers."""
    tiny_model(family).save_pretrained(folder / "base")
    written = method.export(folder / form, form)
    if form == "merged":
        return logits(AutoModelForSequenceClassification.from_pretrained(written))
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    return logits(PeftModel.from_pretrained(base, written))


def base_weight(layer):
    weight = layer.get_base_layer().weight.detach()
    return weight.T if layer.fan_in_fan_out else weight


# budgets


@pytest.mark.parametrize("budget", ["r=1", "r=3", "1900 parameters", "30 ranks"])
@pytest.mark.parametrize("name", ["rslora", "pissa", "peft"])
def test_lora_peers_spend_the_budget_like_uniform_lora(name, budget):
    peer, lora = build(name, budget=budget), build("lora", budget=budget)
    assert peer.rank_pattern() == lora.rank_pattern()
    assert peer.parameter_count() == lora.parameter_count()


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("budget", ["r=2", "r=3", "2500 parameters", "2570 parameters"])
def test_dora_pays_for_its_magnitudes_and_leaves_less_than_a_rank(family, budget):
    method = build("dora", tiny_model(family), budget=budget)
    magnitudes = sum(m.out_features for m in method.matrices.values())
    trained = [p for n, p in method.model.named_parameters() if p.requires_grad and ".modules_to_save." not in n]
    count = method.parameter_count()
    assert count.final == count.peak == sum(p.numel() for p in trained)
    assert count.final == spent(method.rank_pattern(), method.costs) + magnitudes
    assert 0 <= method.target.total - count.final < min(method.costs.values())


def test_dora_that_cannot_pay_for_its_magnitudes_says_what_they_cost():
    with pytest.raises(BudgetError, match=r"budget is 896 parameters, but rank 1 everywhere costs 1,344 here, 448 of"):
        build("dora", budget="r=1")


def test_types_without_a_size_have_to_fit():
    assert build("peft", type="IA3").parameter_count().final == 512
    with pytest.raises(BudgetError, match=r"peft: LN_TUNING trains 16,832 parameters, the budget is 1,792"):
        build("peft", type="LN_TUNING")
    with pytest.raises(BudgetError, match=r"peft: GLORA trains 2,276 parameters at size 1, the budget is 1,792"):
        build("peft", type="GLORA")
    with pytest.raises(BudgetError, match="VERA has no LoRA ranks to count; give parameters"):
        build("peft", type="VERA", budget="24 ranks")


@pytest.mark.parametrize(("kind", "size"), [("LOHA", 3), ("HRA", 12), ("RANDLORA", 3), ("LOKR", 4)])
def test_size_is_the_one_that_trains_most_within_the_budget(kind, size):
    """Reference: PEFT on real weights, at every size up to 32."""
    method = build("peft", type=kind, budget="r=6")
    counts = {}
    for candidate in range(1, 33):
        model = tiny_model()
        config = make_config(kind, model, method.matrices, {}, candidate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel(model, config)
        counts[candidate] = sum(
            p.numel() for n, p in wrapped.named_parameters() if p.requires_grad and ".modules_to_save." not in n
        )
    best = max(found for found in counts.values() if found <= method.target.total)
    assert method.parameter_count().final == best == counts[method.size]
    assert method.size == size == min(candidate for candidate, found in counts.items() if found == best)


@hypothesis_settings(max_examples=300)
@given(
    steps=st.lists(st.integers(0, 9), min_size=20, max_size=60),
    growing=st.booleans(),
    total=st.integers(0, 250),
    holes=st.sets(st.integers(2, 60), max_size=3),
)
def test_largest_fitting_against_brute_force(steps, growing, total, holes):
    """Monotone counts, strictly so at the sizes that are doubled (else the search stops at a plateau)."""
    values, level = [], 0
    for step in steps:
        level += step + 1
        values.append(level)
    if not growing:
        values.reverse()
    counts = {size: value for size, value in enumerate(values, 1) if size not in holes}
    fitting = {size: value for size, value in counts.items() if value <= total}
    found = largest_fitting(counts.get, len(values), total)
    if not fitting:
        assert found is None
    else:
        assert found is not None
        assert (found.size, found.parameters) == max(fitting.items(), key=lambda item: item[1])


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"lora_bias": True}])
def test_counting_holds_no_weights_and_leaves_the_model_alone(settings):
    model = tiny_model()
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    twin = skeleton(model)
    assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"meta"}
    method = build("peft", tiny_model(), settings=settings, budget="r=4")

    def make(m):
        return make_config("LORA", m, method.matrices, settings, 4)

    expected = sum(
        p.numel()
        for n, p in PeftModel(tiny_model(), make(tiny_model())).named_parameters()
        if p.requires_grad and ".modules_to_save." not in n
    )
    assert count_parameters(model, make) == expected
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[name]) == key and torch.equal(after[name], value) for name, (key, value) in before.items())


# what is written


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("form", ["compact", "uniform", "merged"])
@pytest.mark.parametrize("name", ["rslora", "pissa"])
def test_plain_lora_that_loads_on_the_untouched_base_model(tmp_path, family, form, name):
    method = train(build(name, tiny_model(family)))
    torch.testing.assert_close(loaded(method, tmp_path, form, family), logits(method.model), rtol=0, atol=1e-5)
    if form != "merged":
        config = json.loads((tmp_path / form / "adapter_config.json").read_text())
        assert config["init_lora_weights"] is True
        assert not config["use_rslora"]


@pytest.mark.parametrize(
    ("family", "name", "fields"),
    [
        ("bert", "pissa", {}),
        ("gpt2", "pissa", {}),
        ("gpt2", "pissa", {"iterations": 3}),
        ("bert", "peft", {"settings": {"init_lora_weights": "olora"}}),
    ],
)
def test_exported_update_is_relative_to_the_original_weights(tmp_path, family, name, fields):
    """In float64: W_now + s B A = W_before + B' A' of twice the rank, for every matrix."""
    method = train(build(name, tiny_model(family), scaling=1.5, **fields))
    original = tiny_model(family)
    tensors = load_file(method.export(tmp_path / "out") / "adapter_model.safetensors")
    for module, layer in adapted_layers(method.model).items():
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"].double() for x in "AB")
        assert a.shape[0] == b.shape[1] == 2 * method.rank_pattern()[module]
        before = original.get_submodule(module).weight.detach().double()
        before = before.T if family == "gpt2" else before
        trained = layer.lora_B[ADAPTER].weight.detach().double() @ layer.lora_A[ADAPTER].weight.detach().double()
        now = base_weight(layer).double() + 1.5 * trained
        assert float((base_weight(layer).double() - before).norm()) > 0.01
        torch.testing.assert_close(before + b @ a, now, rtol=0, atol=1e-6)


def test_pissa_starts_at_the_leading_singular_directions_and_computes_the_same():
    method = build("pissa", budget="r=3")
    torch.testing.assert_close(logits(method.model), logits(tiny_model()), rtol=0, atol=1e-6)
    original = tiny_model()
    for module, layer in adapted_layers(method.model).items():
        u, s, vh = torch.linalg.svd(original.get_submodule(module).weight.detach().double())
        rank = method.rank_pattern()[module]
        product = layer.lora_B[ADAPTER].weight.detach().double() @ layer.lora_A[ADAPTER].weight.detach().double()
        torch.testing.assert_close(2 * product, (u[:, :rank] * s[:rank]) @ vh[:rank], rtol=0, atol=1e-5)


def test_rslora_scales_with_the_root_of_the_rank():
    method = build("rslora", budget="2000 parameters", scaling=3.0)
    layers = adapted_layers(method.model)
    assert len({layer.r[ADAPTER] for layer in layers.values()}) > 1
    for layer in layers.values():
        assert layer.scaling[ADAPTER] == pytest.approx(3.0 * math.sqrt(layer.r[ADAPTER]))


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_dora_is_written_by_peft_or_merged(tmp_path, family):
    method = train(build("dora", tiny_model(family)))
    expected = logits(method.model)
    for form in ("compact", "merged"):
        torch.testing.assert_close(loaded(method, tmp_path, form, family), expected, rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "compact" / "adapter_config.json").read_text())["use_dora"] is True
    with pytest.raises(ConfigError, match=r"'uniform' is plain LoRA, and LORA \(use_dora=True\) is no B A"):
        method.export(tmp_path / "uniform", "uniform")
    assert not (tmp_path / "uniform").exists()
    assert torch.equal(logits(method.model), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"lora_bias": True},
        {"bias": "all"},
        {"use_dora": True, "use_rslora": True},
        {"use_dora": True, "init_lora_weights": "pissa"},
    ],
)
def test_settings_of_lora_are_carried_out_counted_and_written(tmp_path, settings):
    method = train(build("peft", settings=settings))
    trained = [p for n, p in method.model.named_parameters() if p.requires_grad and ".modules_to_save." not in n]
    assert sum(p.numel() for p in trained) == method.parameter_count().final
    assert 0 <= method.target.total - method.parameter_count().final <= max(method.costs.values())
    for form in ("compact", "merged"):
        torch.testing.assert_close(loaded(method, tmp_path, form), logits(method.model), rtol=0, atol=1e-5)


def test_start_that_is_not_known_is_left_to_peft(tmp_path):
    """It may have changed the base weights."""
    method = build("peft")
    method.model.peft_config[ADAPTER].init_lora_weights = "of a later PEFT"
    with pytest.raises(ConfigError, match="'uniform' is plain LoRA, and LORA is no B A"):
        method.export(tmp_path / "uniform", "uniform")
    config = json.loads((method.export(tmp_path / "out") / "adapter_config.json").read_text())
    assert config["init_lora_weights"] == "of a later PEFT"


def check_type(kind, tmp_path):
    """Trains, resumes, is within the budget, and stock PEFT reads what it wrote."""
    fields = {"type": kind, "budget": "r=6", "settings": SETTINGS.get(kind, {})}
    method = build("peft", **fields)
    start = {name: p.clone() for name, p in method.model.named_parameters() if p.requires_grad}
    train(method)
    moved = [name for name, p in method.model.named_parameters() if p.requires_grad and not torch.equal(p, start[name])]
    assert any(".modules_to_save." not in name for name in moved)
    trained = [p for n, p in method.model.named_parameters() if p.requires_grad and ".modules_to_save." not in n]
    assert sum(p.numel() for p in trained) == method.parameter_count().final <= method.target.total
    expected = logits(method.model)
    again = build("peft", **fields)
    again.load_state_dict(method.state_dict())
    assert torch.equal(logits(again.model), expected)
    assert again.rank_pattern() == method.rank_pattern() == {}
    torch.testing.assert_close(loaded(method, tmp_path, "compact"), expected, rtol=0, atol=1e-6)
    if kind in UNMERGEABLE:
        with pytest.raises(ConfigError, match=f"PEFT cannot merge {kind}"):
            method.export(tmp_path / "merged", "merged")
        assert not (tmp_path / "merged").exists()
    else:
        torch.testing.assert_close(loaded(method, tmp_path, "merged"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", QUICK)
def test_other_types(kind, tmp_path):
    check_type(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [k for k in CONFIGS if k not in (*QUICK, *DRIVEN, *NOT_HERE, "LORA")])
def test_every_other_type(kind, tmp_path):
    check_type(kind, tmp_path)


@pytest.mark.parametrize("kind", NOT_HERE)
def test_types_that_cannot_be_attached_say_why(kind):
    fields = {"type": kind, "settings": {"num_virtual_tokens": 4} if kind == "CPT" else {}}
    with pytest.raises((ConfigError, BudgetError, ModelError), match=NOT_HERE[kind]):
        build("peft", **fields)


# state


def test_other_svd_on_resuming_changes_nothing():
    """As on another machine: the fresh build took other factors out of the base weights than the saved run did."""
    method = train(build("pissa", iterations=1))
    fresh = build("pissa")
    name = next(iter(method.matrices))
    own, other = (base_weight(adapted_layers(m.model)[name]) for m in (method, fresh))
    assert float((own - other).abs().max()) > 1e-3
    fresh.load_state_dict(method.state_dict())
    for module, layer in adapted_layers(method.model).items():
        torch.testing.assert_close(
            base_weight(adapted_layers(fresh.model)[module]), base_weight(layer), rtol=0, atol=1e-6
        )
    torch.testing.assert_close(logits(fresh.model), logits(method.model), rtol=0, atol=1e-6)
    assert fresh.state_dict().keys() == method.state_dict().keys()
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in method.state_dict().items())


@pytest.mark.parametrize("iterations", [None, 2])
def test_rebuilt_base_weights_are_the_same_bit_for_bit(iterations):
    models = [build("pissa", iterations=iterations, seed=3).model for _ in range(2)]
    one, two = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)


# settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "VERRA"}, "PEFT has no type 'VERRA', did you mean 'VERA'"),
        ({"type": "ADALORA"}, "ADALORA has to be driven while it trains: use the method `adalora`"),
        ({"type": "XLORA"}, "XLORA mixes adapters that are trained already"),
        ({"settings": {"use_dorra": True}}, "LORA has no field 'use_dorra', did you mean 'use_dora'"),
        ({"settings": {"r": 64}}, "'r' cannot be set here: the method's `budget` decides it"),
        ({"settings": {"lora_alpha": 64}}, "'lora_alpha' cannot be set here: it is the method's `scaling` times"),
        ({"settings": {"lora_dropout": 0.1}}, "'lora_dropout' cannot be set here: the method's `dropout`"),
        ({"settings": {"target_modules": ["query"]}}, "'target_modules' cannot be set here: the method's"),
        ({"settings": {"rank_pattern": {"query": 64}}}, "'rank_pattern' cannot be set here"),
        ({"settings": {"modules_to_save": ["pooler"]}}, "'modules_to_save' cannot be set here"),
        ({"type": "FOURIERFT", "settings": {"n_frequency": 9}}, "'n_frequency' cannot be set here: the method's"),
        ({"type": "VERA", "settings": {"vera_dropout": 0.1}}, "'vera_dropout' cannot be set here"),
        ({"settings": {"init_lora_weights": "eva"}}, "init_lora_weights 'eva' is a method of its own here"),
        ({"settings": {"init_lora_weights": "loftq"}}, "init_lora_weights 'loftq' replaces the base weights"),
        ({"settings": {"init_lora_weights": "lora_ga"}}, "would silently start at random"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValidationError) as caught:
        METHODS["peft"](**fields)
    assert message in str(caught.value)
    assert caught.value.errors()[0]["loc"] == (
        ("type",) if "type has" in message or fields.keys() == {"type"} else ("settings",)
    )


def test_types_are_read_in_any_case():
    assert METHODS["peft"](type="vera").type == "VERA"


def test_what_a_type_would_ignore_is_refused_before_training():
    findings = METHODS["peft"](type="IA3", dropout=0.1, scaling=4.0).check(12)
    assert [finding.path for finding in findings] == ["method.dropout", "method.scaling"]
    assert METHODS["peft"](type="VERA", dropout=0.1).check(12) == []
    assert METHODS["peft"](type="LOHA", scaling=4.0).check(12) == []
    with pytest.raises(ConfigError, match="IA3 has no dropout; leave it at 0"):
        build("peft", type="IA3", dropout=0.1)


def test_values_that_peft_refuses_are_findings():
    with pytest.raises(ConfigError, match=r"method\.settings: PEFT's IA3 refuses them: .*should be a subset"):
        build("peft", type="IA3", settings={"feedforward_modules": ["nowhere"]})
    with pytest.raises(ModelError, match=r"PEFT cannot put LORA on BertFor.*: Unknown initialization"):
        build("peft", settings={"init_lora_weights": "sideways"})
    with pytest.raises(ModelError, match="requires the LoRA rank to be even"):
        build("peft", settings={"init_lora_weights": "orthogonal"}, budget="r=3")
    with pytest.raises(ModelError, match=r"olora gives .* factors of the wrong shape"):
        build("peft", tiny_model("gpt2"), settings={"init_lora_weights": "olora"})


def test_dropout_scaling_and_settings_reach_peft():
    vera = build("peft", type="VERA", dropout=0.2, settings={"d_initial": 0.3})
    config = vera.model.peft_config[ADAPTER]
    assert (config.vera_dropout, config.d_initial) == (0.2, 0.3)
    loha = build("peft", type="LOHA", budget="r=4", scaling=1.5)
    config = loha.model.peft_config[ADAPTER]
    assert (config.r, config.alpha) == (2, 3.0)
    lora = build("peft", scaling=1.5, dropout=0.1)
    assert {layer.scaling[ADAPTER] for layer in adapted_layers(lora.model).values()} == {1.5}
    assert lora.model.peft_config[ADAPTER].lora_dropout == 0.1


def test_ia3_scales_inputs_where_peft_says_feed_forward():
    method = build("peft", type="IA3")
    inside = method.model.base_model.model.get_submodule
    assert inside("bert.encoder.layer.0.output.dense").is_feedforward
    assert not inside("bert.encoder.layer.0.attention.self.key").is_feedforward
