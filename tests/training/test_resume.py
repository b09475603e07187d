"""Killed at any moment, then resumed: the same losses, ranks and weights, bit for bit, in our trainer and a stock."""

import copy
import multiprocessing
import os
import random
import resource
import shutil
import signal
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from scripted import scripted
from tiny import build, logits, settings, tiny_data, tiny_tokenizer
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainerState

from rankwise.adapters import resize
from rankwise.adapters.contract import METHODS
from rankwise.errors import AllocationError, OutputError, TrainingError
from rankwise.training.callback import STATE_FILE, RankwiseCallback, load_method, save_method
from rankwise.training.fit import fit, last_checkpoint, training_arguments

FIELDS = {
    "glora": {"warmup": 4, "floor": 0},
    "cogalora": {"budget": "r=8", "warmup": 2, "annealing": 9},
    "radlora": {"budget": "r=8", "warmup": 2, "annealing": 9, "router_hidden": 1},
}
PLAN = {4: (3, 1, 0), 8: (2,)}
NAMES = ["scripted", *METHODS]
QUICK = {
    ("scripted", "in a resize"),
    ("adalora", "while saving"),
}  # the other moments are slow tests
QUICK |= {("scripted", 4), ("full", 3)}


def moments(*kinds):
    cases = [(name, kind) for name in NAMES for kind in kinds]
    return [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in cases]


pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter 'default'"),  # PEFT saves AdaLoRA's empty matrices, and warns of them
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]


def make(name):
    return scripted(plan=PLAN) if name == "scripted" else build(name, **FIELDS.get(name, {}))


class Losses(TrainerCallback):
    """The stock trainer's losses, and an end of the process by SIGKILL if asked."""

    def __init__(self, kill_after=None):
        self.kill_after = kill_after

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def ours(method, folder, **kwargs):
    """Losses and weights of a run in our trainer."""
    changes = settings(save_every=2)
    fitted = fit(method, tiny_tokenizer(), tiny_data(20), {}, changes, work_dir=folder, **kwargs)
    return {"losses": fitted.losses, "trace": fitted.trace, "weights": method.state_dict()}


def stock(method, folder, *, resume=None, kill_after=None, **kwargs):
    """The same in a stock Trainer."""
    arguments = training_arguments(settings(save_every=2), folder)
    arguments.logging_strategy, arguments.logging_steps = "steps", 1
    for key, value in kwargs.items():
        setattr(arguments, key, value)
    driver = RankwiseCallback(method, total_steps=12)
    trainer = Trainer(
        model=method.model,
        args=arguments,
        train_dataset=tiny_data(20),
        eval_dataset=tiny_data(8, seed=3),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        callbacks=[driver, Losses(kill_after)],
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "trace": driver.trace, "weights": method.state_dict()}


def killed(action):
    """Do it in a process of its own, which has to die of SIGKILL."""
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


def disturb():
    """Random states that a new process would not share with the one before."""
    torch.manual_seed(999)
    np.random.seed(999)
    random.seed(999)


def assert_same(one, two):
    assert one["losses"] == two["losses"]
    assert one["trace"] == two["trace"]
    assert one["weights"].keys() == two["weights"].keys()
    assert all(torch.equal(one["weights"][key], two["weights"][key]) for key in one["weights"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(trainer, method) -> outcome of the run that nobody killed; kept."""
    done = {}

    def of(train, name):
        if (train, name) not in done:
            done[train, name] = train(make(name), tmp_path_factory.mktemp("whole"))
        return done[train, name]

    return of


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def while_saving(monkeypatch):
    """Dies when the second checkpoint is written but for its last file."""
    real = TrainerState.save_to_json

    def save(self, path):
        die() if self.global_step == 4 else real(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", save)


MOMENTS = {
    "before": lambda patch, at: None,
    "after": lambda patch, at: None,
    "in a resize": lambda patch, at: patch.setattr(resize, "write_patterns", die),
    "while saving": lambda patch, at: while_saving(patch),
}


@pytest.mark.parametrize(("name", "moment"), moments(*MOMENTS))
def test_killed_run_of_ours_goes_on_bit_for_bit(whole, tmp_path, monkeypatch, name, moment):
    resizes = any(event.event == "resize" and event.step > 2 for event in whole(ours, name)["trace"])
    if moment == "in a resize" and not resizes:
        pytest.skip(f"{name} changes no rank after its first checkpoint")
    step = {"before": 3, "after": 7}.get(moment)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            MOMENTS[moment](patch, step)
            ours(make(name), tmp_path, on_step=lambda at, loss: die() if at == step else None)

    killed(run)
    assert last_checkpoint(tmp_path) is not None
    disturb()
    assert_same(ours(make(name), tmp_path), whole(ours, name))


@pytest.mark.parametrize(("name", "step"), moments(3, 4, 9))
def test_killed_stock_trainer_goes_on_bit_for_bit(whole, tmp_path, name, step):
    """`resume_from_checkpoint=True` is all it takes, whatever the ranks in the checkpoint are."""
    killed(lambda: stock(make(name), tmp_path, kill_after=step))
    disturb()
    assert_same(stock(make(name), tmp_path, resume=True), whole(stock, name))


def test_checkpoint_of_ours_without_a_state_is_refused(tmp_path):
    stock(make("scripted"), tmp_path)
    (tmp_path / "checkpoint-12" / STATE_FILE).unlink()
    with pytest.raises(TrainingError, match=r"cannot resume: .*checkpoint-12 holds no rankwise\.safetensors"):
        stock(make("scripted"), tmp_path, resume=True)


def test_other_adapters_and_plain_checkpoints_load_as_before(tmp_path):
    plain = build("lora")
    plain.model.save_pretrained(tmp_path / "plain")
    method = build("lora", seed=3)
    RankwiseCallback(method, total_steps=12)
    method.model.load_adapter(str(tmp_path / "plain"), "default")
    assert torch.equal(logits(method.model), logits(plain.model))
    method.model.load_adapter(str(tmp_path / "plain"), "other")
    assert set(method.model.peft_config) == {"default", "other"}


def test_copy_of_a_driven_model_loads_into_itself(tmp_path):
    """`deepcopy(model)` must not keep a hand on the model it was made from."""
    trained = make("scripted")
    stock(trained, tmp_path)
    method = build("lora")
    RankwiseCallback(method, total_steps=12)
    before = logits(method.model)
    twin = copy.deepcopy(method.model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    method.model.save_pretrained(tmp_path / "mine")
    twin.load_adapter(str(tmp_path / "mine"), "default")
    assert torch.equal(logits(method.model), before)
    assert isinstance(twin.load_adapter.__self__, PeftModel)
    assert twin.load_adapter.__self__ is twin


@pytest.mark.parametrize(
    "name", ["glora", "scripted", *(pytest.param(n, marks=pytest.mark.slow) for n in ("full", "galora"))]
)
def test_best_model_at_the_end(tmp_path, name):
    """The best checkpoint has its own ranks, other than those of the last step."""
    method = make(name)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stock(method, tmp_path, eval_strategy="steps", eval_steps=2, save_total_limit=None, **options)
    best = TrainerState.load_from_json(str(tmp_path / "checkpoint-12" / "trainer_state.json")).best_model_checkpoint
    assert best.endswith("checkpoint-2")  # a loss that falls, and greater is better: the first
    fresh = make(name)
    if name == "full":
        assert not torch.equal(logits(fresh.model), logits(method.model))
        return
    load_method(fresh, tmp_path / "checkpoint-2")
    assert method.rank_pattern() == fresh.rank_pattern()
    assert torch.equal(logits(method.model), logits(fresh.model))
    early = any("the best checkpoint is from before the method was done" in str(w.message) for w in said)
    assert early is (name in ("glora", "galora"))
    if early:
        with pytest.raises(AllocationError):
            method.export(tmp_path / "out")


def test_best_model_at_the_end_of_a_method_that_cuts_is_refused_before_it_trains(tmp_path):
    method = build("cogalora", budget="r=8", warmup=2, annealing=9, drop_below=0.1)
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    with pytest.raises(TrainingError, match="leave out one of load_best_model_at_end and drop_below"):
        stock(method, tmp_path, eval_strategy="steps", eval_steps=2, save_total_limit=None, **options)
    assert method.step == 0


def test_adapter_that_was_taken_off_comes_back_with_a_saved_state(tmp_path):
    method = build("lora", budget="r=3")
    expected, ranks = logits(method.model), method.rank_pattern()
    save_method(method, tmp_path)
    gone = dict.fromkeys(list(method.matrices)[::2], 0)
    resize.apply_resize(method.model, gone)
    assert len([n for n, _ in method.model.named_parameters() if ".lora_A." in n]) == len(ranks) - len(gone)
    load_method(method, tmp_path)
    assert method.rank_pattern() == ranks
    assert torch.equal(logits(method.model), expected)
    assert all(p.requires_grad for n, p in method.model.named_parameters() if ".lora_" in n)


def test_full_disk_is_explained(tmp_path):
    """A file may not grow beyond 1 kB here, which safetensors reports in an exception of its own."""
    method = build("lora")
    save_method(method, tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        with pytest.raises(OutputError, match=r"cannot save the state of the run in .*: .*File too large"):
            save_method(method, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / STATE_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_folder_that_cannot_be_written_is_explained(tmp_path):
    with pytest.raises(OutputError, match=r"cannot save the state of the run in .*nowhere"):
        save_method(build("lora"), tmp_path / "nowhere")


OTHERS = {
    "other targets": (("lora", {"target_modules": ["query"]}), ("lora", {}), "target_modules was"),
    "other budget": (("lora", {"budget": "r=2"}), ("lora", {"budget": "r=8"}), "budget was 'r=2', is 'r=8'"),
    "other scaling": (("lora", {"scaling": 2.0}), ("lora", {"scaling": 4.0}), "scaling was"),
    "other share": (("galora", {"keep": 0.35}), ("galora", {"keep": 0.5}), "keep was"),
    "other method": (("lora", {}), ("random", {}), "name was 'lora', is 'random'"),
    "method with a memory": (("lora", {}), ("adalora", {}), "name was 'lora', is 'adalora'"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_state_of_another_method_or_of_other_settings_is_refused(tmp_path, case):
    (name, fields), (other, changed), message = OTHERS[case]
    save_method(build(name, **fields), tmp_path)
    load_method(build(name, **fields), tmp_path)
    with pytest.raises(TrainingError, match=message):
        load_method(build(other, **changed), tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run of `galora`, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("finished")
    ours(make("galora"), folder)
    return folder


@pytest.mark.parametrize("part", [STATE_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", [pytest.param(0, marks=pytest.mark.slow), 40])
def test_damaged_checkpoint_is_named(finished, tmp_path, part, damage):
    """A full disk or a crash of the machine can leave what a kill cannot: a file that is there, but not whole."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "checkpoint-10" / part
    file.write_bytes(file.read_bytes()[:damage])
    with pytest.raises(TrainingError, match=r"is damaged .*remove the folder checkpoint-10"):
        ours(make("galora"), tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        STATE_FILE,
        "trainer_state.json",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("optimizer.pt", "scheduler.pt", "rng_state.pth")),
    ],
)
def test_checkpoint_with_a_part_missing_is_passed_over(whole, finished, tmp_path, part):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / part).unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    disturb()
    assert_same(ours(make("galora"), tmp_path), whole(ours, "galora"))


def test_a_finished_method_is_not_trained_again(tmp_path):
    method = make("galora")
    driver = RankwiseCallback(method, total_steps=12)
    arguments = training_arguments(settings(), tmp_path)
    collator = DataCollatorWithPadding(tiny_tokenizer())
    trainer = Trainer(
        model=method.model, args=arguments, train_dataset=tiny_data(20), data_collator=collator, callbacks=[driver]
    )
    trainer.train()
    with pytest.raises(TrainingError, match="galora has been trained to its end"):
        trainer.train()
