"""The contract, held by every registered method: a new method is covered as soon as it is registered."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import batch, build, logits, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.block_method import BlockMethod
from rankwise.adapters.conditional_method import ConditionalConfig
from rankwise.adapters.contract import METHODS, Method
from rankwise.adapters.deciding_method import TOLERANCE as SHARE_TOLERANCE
from rankwise.adapters.deciding_method import DecidingMethod
from rankwise.errors import AllocationError, ConfigError, OutputError, TrainingError
from rankwise.training.callback import RankwiseCallback, load_method, save_method
from rankwise.training.fit import fit, last_checkpoint, training_arguments

FAMILIES = ("bert", "llama", "gpt2")
ELSEWHERE = ("radlora",)
"""Methods whose budget and static form need references of their own: see their tests."""
BLOCK = {"full_depth": 2, "annealing": 9, "keep_last": 0, "router_hidden": 2, "bypass_rank": 1}
VARIANTS = {name: (name, {}) for name in METHODS if name not in ELSEWHERE} | {
    "glora": ("glora", {"warmup": 4}),
    "glora-again": ("glora", {"warmup": 2, "every": 3, "until": 9, "smoothing": 0.5, "signal": "norm_of_mean"}),
    "adalora-ranks": ("adalora", {"budget": "30 ranks", "every": 2}),
    "truncate-early": ("truncate", {"final": 6, "keep": "25%"}),
    "random-open": ("random", {"floor": 0, "concentration": 0.1}),
    "eva-ranks": ("eva", {"budget": "30 ranks", "rho": 4.0}),
    "cogalora": ("cogalora", {"budget": "r=8", "warmup": 2, "annealing": 9}),
    "cogalora-shared": ("cogalora", {"budget": "r=8", "warmup": 2, "annealing": 9, "router": "shared"}),
    "radlora": ("radlora", {"budget": "r=8", "warmup": 2, "annealing": 9, "router_hidden": 1}),
    "radlora-block": ("radlora", {"budget": "r=8", "depth": "block", "block": BLOCK}),
}
"""Every registered method under its name with settings that make it decide within twelve steps, and some others."""
ADAPTERS = [key for key, (name, _) in VARIANTS.items() if "budget" in METHODS[name].model_fields]
CONDITIONAL = [key for key in ADAPTERS if issubclass(METHODS[VARIANTS[key][0]], ConditionalConfig)]
"""Methods that decide per input: what they export is a PEFT type of our own, and plain LoRA only in the static form."""
GATED = [key for key in CONDITIONAL if VARIANTS[key][1].get("depth") != "block"]
"""Those that decide on adapters; the others on blocks."""
PLAIN = [key for key in ADAPTERS if key not in CONDITIONAL]
WRITTEN = {"pissa": 2}
"""Times the trained rank that a checkpoint holds, where not once: PiSSA's takes back what left the base weights too."""
NOT_PLAIN = ("dora",)
"""Methods whose compact form is PEFT's own, because no plain LoRA equals it."""
UNDRAWN = ("pissa",)
"""Methods whose adapters start from the base weights alone, whatever the seed."""
OTHERS = [pytest.mark.slow]
ALL = [name if name in METHODS else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
"""Variants beside the methods themselves are slow tests."""
DECIDING = ("lora", "glora", "adalora", "galora", "cogalora", "radlora", "full")
"""Methods whose interrupted runs are resumed in the default tests; those of the others are slow tests."""
COMBINATIONS = [
    pytest.param(family, key, marks=[] if family == "bert" else OTHERS) for family in FAMILIES for key in VARIANTS
]
EVERY_FAMILY = [pytest.param(family, marks=[] if family == "bert" else OTHERS) for family in FAMILIES]
"""Families beside BERT are slow tests: the methods are the same."""


def made(key, model=None, **fields):
    """A variant on a tiny model."""
    name, own = VARIANTS[key]
    return build(name, model, **(own | fields))


FACTOR = re.compile(r"\.lora_(A|B|magnitude_vector)\b")
"""A tensor that is a factor of plain LoRA, or DoRA's magnitudes."""


def own_budget(key):
    """A variant's budget, for other methods."""
    return {field: value for field, value in VARIANTS[key][1].items() if field == "budget"}


LOADER = """
import json, sys, warnings, torch
warnings.simplefilter("ignore")
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(1)
jobs, inputs, output = json.load(open(sys.argv[1])), torch.load(sys.argv[2]), sys.argv[3]
results = {}
def answer(model):
    with torch.no_grad():
        return model.eval()(**inputs).logits
for key, (base, folder, adapter) in jobs.items():
    model = AutoModelForSequenceClassification.from_pretrained(base if adapter else folder)
    if adapter:
        model = PeftModel.from_pretrained(model, folder)
    results[key] = [answer(model)]
    if adapter:
        results[key].append(answer(model.merge_and_unload(safe_merge=True)))
assert not any(name.split(".")[0] == "rankwise" for name in sys.modules)
torch.save(results, output)
"""


def train(method, folder, changes, **kwargs):
    data = tiny_data(20)
    return fit(method, tiny_tokenizer(), data, {"main": tiny_data(9, seed=3)}, changes, work_dir=folder, **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """(family, method name) -> (method, what `fit` returned, export folder); all on tiny models.

    Only of the families that a chosen test asks for.
    """
    folder = tmp_path_factory.mktemp("trained")
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = {item.callspec.params.get("family") for item in here}
    done = {}
    for family, name in [(family, key) for family in FAMILIES if family in {"bert", *asked} for key in VARIANTS]:
        method = made(name, tiny_model(family))
        fitted = train(method, folder / "work", settings())
        done[family, name] = (method, fitted, method.export(folder / f"{family}-{name}"))
    return done


@pytest.fixture(scope="module")
def loaded(trained, tmp_path_factory):
    """(family, method name) -> logits (as loaded, merged) from a process that never imports rankwise.

    Of methods that decide per input, those of the static form.
    """
    folder = tmp_path_factory.mktemp("loaded")
    jobs = {}
    for (family, name), (method, _, export) in trained.items():
        tiny_model(family).save_pretrained(folder / family)
        if name in CONDITIONAL:
            export = method.export(folder / f"{family}-{name}-static", "static")
        jobs[f"{family} {name}"] = (str(folder / family), str(export), name in ADAPTERS)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    torch.save(batch(), folder / "inputs.pt")
    command = [sys.executable, "-c", LOADER, *(str(folder / n) for n in ("jobs.json", "inputs.pt", "out.pt"))]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return {tuple(key.split()): value for key, value in torch.load(folder / "out.pt").items()}


@pytest.mark.parametrize(("family", "name"), COMBINATIONS)
def test_trains_and_records_every_step(trained, family, name):
    method, fitted, _ = trained[family, name]
    assert [step for step, _ in fitted.losses] == list(range(1, 13))
    assert fitted.logits["main"].shape == (9, 3)
    assert (fitted.trace[0].event, fitted.trace[-1].event) == ("start", "end")
    assert dict(fitted.trace[-1].ranks) == method.rank_pattern()
    before = tiny_model(family)
    assert not torch.equal(logits(before), logits(method.model))


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("name", ADAPTERS)
def test_budget_is_met_and_counted(trained, family, name):
    method, fitted, export = trained[family, name]
    method.check_finished()
    count = method.parameter_count()
    if "ranks" in VARIANTS[name][1].get("budget", ""):
        assert f"{sum(method.rank_pattern().values())} ranks" == VARIANTS[name][1]["budget"]
    else:
        asked = build("lora", tiny_model(family), **own_budget(name)).target.total
        tolerance = getattr(sys.modules[type(method).__module__], "TOLERANCE", None)
        slack = 0 if tolerance is None else max(tolerance * asked, *method.costs.values())
        if name in CONDITIONAL:  # routers leave a rest that is less than one rank
            slack = max(method.costs.values()) - 1
        assert asked - slack <= count.final <= asked
    assert count.peak >= count.final
    tensors = load_file(export / "adapter_model.safetensors")
    assert sum(t.numel() for key, t in tensors.items() if ".lora_" in key) == WRITTEN.get(name, 1) * count.final
    magnitudes = sum(t.numel() for key, t in tensors.items() if ".lora_magnitude_vector" in key)  # DoRA's
    factors = sum(rank * method.costs[module] for module, rank in method.rank_pattern().items())
    decisions = sum(t.numel() for key, t in tensors.items() if ".lora_" in key and not FACTOR.search(key))
    assert (decisions > 0) == (name in CONDITIONAL)
    if not any(FACTOR.search(key) for key in tensors):  # banks that modules share
        factors = 0
    assert factors + magnitudes + decisions == count.final
    assert fitted.trace[-1].ranks.keys() == method.costs.keys()


@pytest.mark.parametrize(("family", "name"), COMBINATIONS)
def test_export_gives_the_same_logits_without_rankwise(trained, loaded, family, name):
    method, _, _ = trained[family, name]
    expected = logits(with_average_gates(method) if name in CONDITIONAL else method.model)
    for actual in loaded[family, name]:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def with_average_gates(method):
    """A copy of the base model with every adapter added at the share of training examples that use it.

    Of block mode, the model whose blocks are all run.
    """
    model = copy.deepcopy(method.model)
    if isinstance(method, BlockMethod):
        model.peft_config[ADAPTER].threshold = -1.0
        return model
    for name, layer in adapted_layers(model).items():
        a, b, base = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.get_base_layer()
        average = getattr(method.peft, "components", None) or method.peft.usage  # per component, or one for all
        change = layer.scaling[ADAPTER] * (b * b.new_tensor(average[name])) @ a
        base.weight += change.T if layer.fan_in_fan_out else change
    return model.unload()


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("name", CONDITIONAL)
def test_own_type_loads_where_rankwise_is_imported_and_decides_alike(trained, family, name):
    method, _, export = trained[family, name]
    found = PeftModel.from_pretrained(tiny_model(family), export)
    assert torch.equal(logits(found), logits(method.model))
    config, own = found.peft_config[ADAPTER], method.peft
    assert (config.threshold, config.usage) == (own.threshold, own.usage)
    assert not torch.allclose(logits(found), logits(with_average_gates(method)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("form", ["uniform", "merged"])
def test_forms_without_decisions_are_refused_with_the_reason(trained, tmp_path, name, form):
    with pytest.raises(ConfigError, match=rf"form: '{form}' is not possible: .* --form static"):
        trained["bert", name][0].export(tmp_path / form, form)
    assert not (tmp_path / form).exists()


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("name", GATED)
def test_share_of_open_gates_is_met_and_gates_differ_between_inputs(trained, family, name):
    method, _, _ = trained[family, name]
    target = float(method.config.active)
    assert sum(method.peft.usage.values()) / len(method.peft.usage) == pytest.approx(method.measured, abs=1e-6)
    assert method.measured == pytest.approx(target, abs=SHARE_TOLERANCE)
    assert any(0.1 < share < 0.9 for share in method.peft.usage.values())


FORMS = [(name, form) for name in PLAIN for form in ("uniform", "merged") if (name, form) != ("dora", "uniform")]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_other_forms_give_the_same_logits(trained, tmp_path, name, form):
    method, _, _ = trained["bert", name]
    method.export(tmp_path / form, form)
    if form == "merged":
        found = type(tiny_model()).from_pretrained(tmp_path / form)
    else:
        config = json.loads((tmp_path / form / "adapter_config.json").read_text())
        assert (config["rank_pattern"], config["alpha_pattern"], config["r"]) == ({}, {}, config["lora_alpha"])
        found = PeftModel.from_pretrained(tiny_model(), tmp_path / form)
    torch.testing.assert_close(logits(found), logits(method.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in NOT_PLAIN])
def test_compact_form_has_one_scale_for_servers_that_ignore_patterns(trained, name):
    config = json.loads((trained["bert", name][2] / "adapter_config.json").read_text())
    ranks = trained["bert", name][0].rank_pattern().values()
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == WRITTEN.get(name, 1) * max(ranks)
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["target_modules"]) == sum(rank > 0 for rank in ranks)


@pytest.mark.parametrize("name", ALL)
def test_export_twice_is_equal_and_leaves_the_method_as_it_was(trained, tmp_path, name):
    method, _, first = trained["bert", name]
    before, ranks = logits(method.model), method.rank_pattern()
    second = method.export(tmp_path / "again")
    file = "adapter_model.safetensors" if name in ADAPTERS else "model.safetensors"
    one, two = load_file(first / file), load_file(second / file)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(logits(method.model), before)
    assert method.rank_pattern() == ranks
    with pytest.raises(OutputError, match="exists and is not empty"):
        method.export(first)


@pytest.mark.parametrize("name", ALL)
def test_saved_state_gives_the_same_logits(trained, tmp_path, name):
    method, _, _ = trained["bert", name]
    save_method(method, tmp_path)
    fresh = made(name)
    load_method(fresh, tmp_path)
    assert torch.equal(logits(fresh.model), logits(method.model))
    assert fresh.rank_pattern() == method.rank_pattern()
    assert fresh.parameter_count() == method.parameter_count()
    fresh.check_finished()


def test_state_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"holds no rankwise\.safetensors"):
        load_method(build("lora"), tmp_path)


@pytest.mark.parametrize("name", [n if n in DECIDING else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
@pytest.mark.parametrize("lost", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 6, 12))])
def test_interrupted_run_resumes_to_the_same_run(trained, tmp_path, name, lost):
    """Five steps to an epoch; a reallocation after step 4 (glora) or at every step from 2 to 8 (AdaLoRA).

    The run dies in step `lost`, before that step is saved.
    """
    _, whole, _ = trained["bert", name]

    def die(step, loss):
        if step == lost:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made(name), tmp_path / "cut", settings(save_every=1), on_step=die)
    method = made(name)
    torch.manual_seed(999)
    seen, events = [], []
    resumed = train(
        method,
        tmp_path / "cut",
        settings(save_every=1),
        on_step=lambda step, loss: seen.append((step, loss)),
        on_event=events.append,
    )
    assert seen == whole.losses[lost - 1 :]
    assert resumed.losses == whole.losses
    assert (resumed.logits["main"] == whole.logits["main"]).all()
    assert resumed.trace == whole.trace == events
    method.check_finished()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_run_killed_after_its_last_step_takes_no_step_too_many(tmp_path, name):
    whole = train(made(name), tmp_path, settings(save_every=6))
    steps = []
    again = train(made(name), tmp_path, settings(save_every=6), on_step=lambda step, loss: steps.append(step))
    assert steps == list(range(7, 13))
    assert (again.losses, again.trace) == (whole.losses, whole.trace)
    assert (again.logits["main"] == whole.logits["main"]).all()


def test_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    parts = ("rankwise.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    for step in (2, 9):
        for part in parts:
            (tmp_path / f"checkpoint-{step}" / part).touch()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    for damage in ("{", ""):
        (tmp_path / "checkpoint-9" / "trainer_state.json").write_text(damage)
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("{}")
    for part in parts:
        (tmp_path / "checkpoint-9" / part).unlink()
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
        (tmp_path / "checkpoint-9" / part).touch()


class Recorder(TrainerCallback):
    """Counts hook calls by wrapping them, and checks the optimizer after every step."""

    def __init__(self, method):
        self.method, self.before, self.after = method, [], []
        before, after = method.before_optimizer_step, method.after_optimizer_step
        method.before_optimizer_step = lambda step: (self.before.append(step), before(step))[1]
        method.after_optimizer_step = lambda step: (self.after.append(step), after(step))[1]

    def on_step_end(self, args, state, control, **kwargs):
        held = [p for group in kwargs["optimizer"].param_groups for p in group["params"]]
        trainable = [p for p in self.method.model.parameters() if p.requires_grad]
        assert len(held) == len({id(p) for p in held})
        assert {id(p) for p in trainable} == {id(p) for p in held}
        stateful = set(map(id, kwargs["optimizer"].state))
        idle = isinstance(self.method, DecidingMethod) and state.global_step <= self.method.tracker.first
        assert {id(p) for p in trainable if not idle or id(p) in stateful} == stateful
        for parameter, entry in kwargs["optimizer"].state.items():
            assert entry["exp_avg"].shape == entry["exp_avg_sq"].shape == parameter.shape


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_hooks_once_per_optimizer_step_and_optimizer_holds_what_is_trained(tmp_path, name, accumulation):
    method = made(name, **({"floor": 0} if name == "glora" else {}))
    recorder = Recorder(method)
    changes = settings(gradient_accumulation_steps=accumulation, batch_size=4 // accumulation)
    trainer = trainer_for(method, tmp_path, changes, callbacks=[recorder])
    trainer.train()
    assert recorder.before == recorder.after == list(range(1, 13))
    assert [step for step, _ in trainer.losses] == list(range(1, 13))


@pytest.mark.parametrize(("family", "name"), COMBINATIONS)
def test_eval_loss_is_cross_entropy_alone(trained, family, name):
    _, fitted, _ = trained[family, name]
    predicted, labels = (torch.tensor(values["main"]) for values in (fitted.logits, fitted.references))
    expected = torch.nn.functional.cross_entropy(predicted, labels)
    assert fitted.eval_losses["main"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_training_loss_is_the_task_loss_alone(tmp_path, name):
    """The first step's loss, before anything moved, is the base model's."""
    model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    data = tiny_data(4, length=9)
    columns = ("input_ids", "attention_mask", "labels")
    expected = model.eval()(**{c: torch.tensor(data[c][:]) for c in columns}).loss.item()
    trainer = trainer_for(made(name, model), tmp_path, data=data)
    trainer.train()
    assert trainer.losses[0][1] == pytest.approx(expected, abs=1e-6)


def decides(method):
    """Whether a method has anything to do before or while training goes on."""
    hooks = ("prepare", "after_optimizer_step")
    moves = any(getattr(type(method), hook) is not getattr(Method, hook) for hook in hooks)
    return moves or isinstance(method, DecidingMethod)


@pytest.mark.parametrize("name", VARIANTS)
def test_hooks_never_called_is_an_error(tmp_path, name):
    method = made(name)
    if not decides(method):
        method.check_finished()
        return
    stock = Trainer(
        model=method.model,
        args=training_arguments(settings(), tmp_path / "work"),
        train_dataset=tiny_data(20),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
    )
    stock.train()
    with pytest.raises(AllocationError, match="RankwiseCallback"):
        method.check_finished()
    with pytest.raises(AllocationError, match="RankwiseCallback"):
        method.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ALL)
def test_other_number_of_steps_is_an_error(tmp_path, name):
    method = made(name, total_steps=30)
    with pytest.raises(TrainingError, match="built for 30 optimizer steps, the trainer will run 12"):
        trainer_for(method, tmp_path, driver=RankwiseCallback(method, total_steps=30)).train()


@pytest.mark.parametrize("name", ALL)
def test_build_depends_on_the_seed_alone(name):
    """Neither on the global random state, nor does it move it."""
    states = []
    for noise in (1, 2):
        model = tiny_model()
        torch.manual_seed(noise)
        states.append(made(name, model, seed=5).state_dict())
        drawn = torch.rand(3)
        torch.manual_seed(noise)
        assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if name in ADAPTERS and name not in UNDRAWN:
        other = made(name, seed=6).state_dict()
        assert states[0].keys() != other.keys() or any(not torch.equal(states[0][key], other[key]) for key in other)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_start_as_the_base_model_and_the_base_is_frozen(name):
    expected = logits(tiny_model())
    method = made(name)
    torch.testing.assert_close(logits(method.model), expected, rtol=0, atol=1e-7)
    names = [n for n, p in method.model.named_parameters() if p.requires_grad]
    assert all(".lora_" in n or ".classifier." in n for n in names)
    assert any(".classifier." in n for n in names)
