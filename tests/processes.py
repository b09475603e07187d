"""Trainings that are done by one process and by two, and must come to the same. Run by test_distributed.py:

torchrun --nproc_per_node 2 processes.py FOLDER CASE …
"""

import dataclasses
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from scripted import scripted
from tiny import build, settings, tiny_data, tiny_model, tiny_tokenizer, trainer_for
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from rankwise.adapters.contract import METHODS as REGISTERED
from rankwise.adapters.distributed import is_main, world_size
from rankwise.allocation.signals import SIGNALS
from rankwise.training.callback import RankwiseCallback
from rankwise.training.fit import fit, training_arguments

QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PLAN = {2: (4, 1), 4: (3,), 6: (2, 0, 3), 9: (1, 2)}  # grown and shrunk, some taken off, and again
DRAWN = ("cogalora", "radlora")
"""Methods that draw gates in every forward pass: two processes draw others than one does for the whole batch."""
RAGGED = 19  # with 4 examples to a batch: the last batch of an epoch has 3, which two processes cannot share evenly


def bert(**overrides):
    return tiny_model(**QUIET, **overrides)


def outcome(method, losses, trace):
    """What must not depend on the number of processes."""
    return {
        "losses": losses,
        "trace": [(event.step, event.event, dict(event.ranks), dict(event.scores)) for event in trace],
        "weights": {n: p.detach().clone() for n, p in method.model.named_parameters() if p.requires_grad},
    }


def ours(method, folder, count=RAGGED, **changes):
    """Our trainer through `fit`, predictions included."""
    changes = (
        settings(batch_size=4, gradient_accumulation_steps=2, save_every=5) if not changes else settings(**changes)
    )
    held = {"main": tiny_data(9, seed=3)}
    fitted = fit(method, tiny_tokenizer(), tiny_data(count), held, changes, work_dir=folder)
    result = outcome(method, fitted.losses, fitted.trace)
    return result | {"logits": torch.tensor(fitted.logits["main"]), "eval_loss": fitted.eval_losses["main"]}


class Language:
    """Next-token prediction on the tiny texts; the first words of some are not to be predicted."""

    def model(self):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=60, pad_token_id=0, **sizes))

    def collate(self, rows):
        width = max(len(row["input_ids"]) for row in rows)
        batch = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            ids, pad = list(row["input_ids"]), width - len(row["input_ids"])
            hidden = 2 * (ids[0] % 2)
            batch["input_ids"].append(ids + [0] * pad)
            batch["attention_mask"].append([1] * len(ids) + [0] * pad)
            batch["labels"].append([-100] * hidden + ids[hidden:] + [-100] * pad)
        return {key: torch.tensor(value) for key, value in batch.items()}


def causal(folder, accumulation=2, weight=0.3, plan=PLAN, count=RAGGED):
    """A causal language model, whose loss is a sum over the tokens of the whole step, with a penalty."""
    language = Language()
    method = scripted(language.model(), plan=plan, weight=weight)
    driver = RankwiseCallback(method, total_steps=12)
    changes = settings(batch_size=8 // accumulation, gradient_accumulation_steps=accumulation)
    trainer = trainer_for(method, folder, changes, data=tiny_data(count), driver=driver)
    trainer.data_collator = language.collate
    trainer.train()
    return outcome(method, trainer.losses, driver.trace)


def stock(folder, find_unused=None, accumulation=2, fields=None, **kwargs):
    """A stock `Trainer` with nothing of ours but the callback; its own losses, every step.

    A language model, because a stock Trainer multiplies other losses by the number of processes.
    """
    language = Language()
    method = scripted(language.model(), **(fields or {"plan": PLAN}))
    arguments = training_arguments(settings(batch_size=4, gradient_accumulation_steps=accumulation), folder)
    arguments = dataclasses.replace(
        arguments,
        per_device_train_batch_size=4 // arguments.world_size,
        ddp_find_unused_parameters=find_unused,
        logging_strategy="steps",
        logging_steps=1,
        **kwargs,
    )
    driver = RankwiseCallback(method, total_steps=12)
    data = tiny_data(16)
    trainer = Trainer(method.model, arguments, data_collator=language.collate, train_dataset=data, callbacks=[driver])
    trainer.train()
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return outcome(method, losses, driver.trace)


def stock_resumed(folder):
    """A stock Trainer, stopped after step 7 and gone on with from its own checkpoint after step 6; with dropout."""

    def run(place, resume=False, stop=False):
        method = scripted(plan=PLAN)
        arguments = training_arguments(settings(batch_size=4, save_every=3), place)
        driver = RankwiseCallback(method, total_steps=12)
        callbacks = [driver, *([Stop()] if stop else [])]
        trainer = Trainer(method.model, arguments, train_dataset=tiny_data(16, length=9), callbacks=callbacks)
        try:
            trainer.train(resume_from_checkpoint=resume)
        except KeyboardInterrupt:
            torch.manual_seed(3)
        return {n: p.detach() for n, p in method.model.named_parameters() if p.requires_grad}, driver.trace

    whole, trace = run(folder / "whole")
    run(folder / "cut", stop=True)
    again, told = run(folder / "cut", resume=True)
    return {"bit for bit": trace == told and all(torch.equal(again[key], whole[key]) for key in whole)}


class Stop(TrainerCallback):
    """Ends training after step 7."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            raise KeyboardInterrupt


def resumed(name, folder, seed, **fields):
    """The same run, stopped after step 7 and gone on with from the state saved after step 6; with dropout."""
    changes = settings(batch_size=4, save_every=3)
    make = (lambda: scripted(plan=PLAN)) if name == "scripted" else (lambda: build(name, **fields))
    first = make()
    try:
        trainer_for(first, folder, changes, data=tiny_data(RAGGED), callbacks=[Stop()]).train()
    except KeyboardInterrupt:
        torch.manual_seed(seed)  # whatever the new process starts from
        random.seed(seed)
        np.random.seed(seed)
    second = make()
    fitted = fit(second, tiny_tokenizer(), tiny_data(RAGGED), {}, changes, work_dir=folder)
    whole = make()
    alone = trainer_for(whole, folder / "whole", settings(batch_size=4), data=tiny_data(RAGGED))
    alone.train()
    same = outcome(whole, alone.losses, [])["weights"]
    now = outcome(second, fitted.losses, fitted.trace)
    equal = fitted.losses == alone.losses and all(torch.equal(now["weights"][key], same[key]) for key in same)
    return {"bit for bit": equal}


FIELDS = {"glora": {"warmup": 4, "floor": 0}}


def cases():
    """Name -> a training, given a folder of its own."""
    scripts = {
        "scripted": lambda folder: ours(scripted(bert(), plan=PLAN), folder),
        "scripted, one step, penalty": lambda folder: ours(
            scripted(bert(), plan=PLAN, weight=0.3), folder, batch_size=8, gradient_accumulation_steps=1
        ),
        "of different minds": lambda folder: ours(scripted(bert(), plan=PLAN, dissent=True), folder),
        "prepared": lambda folder: ours(scripted(bert(), first=(3, 1), plan={5: (2,)}), folder),
        "one left over": lambda folder: ours(
            scripted(bert(), plan=PLAN), folder, count=17, batch_size=4, gradient_accumulation_steps=1
        ),
        "checkpointing": lambda folder: ours(
            scripted(bert(), plan=PLAN), folder, batch_size=8, gradient_checkpointing=True
        ),
        "causal": causal,
        "stock": stock,
        "stock, prepared, penalty": lambda folder: stock(folder, fields={"first": (3, 1), "weight": 0.3}),
        "stock, unused looked for": lambda folder: stock(folder, True, accumulation=1),
        "stock, unused not looked for": lambda folder: stock(folder, False, ddp_bucket_cap_mb=1),
        "resumed, stock": stock_resumed,
        "resumed, scripted": lambda folder: resumed("scripted", folder, seed=3),
    }
    known = {name: FIELDS.get(name, {}) for name in REGISTERED if name not in DRAWN}
    signals = {f"glora, {s}": {"warmup": 4, "signal": s} for s in SIGNALS}
    for name, fields in (known | signals).items():
        method = name.partition(",")[0]
        scripts[name] = lambda folder, m=method, f=fields: ours(build(m, bert(), **f), folder)
        if name in known:
            scripts[f"resumed, {name}"] = lambda folder, m=method, f=fields: resumed(m, folder, seed=3, **f)
    return scripts


def main(folder, names):
    available = cases()
    results = {}
    for index, name in enumerate(names or available):
        results[name] = available[name](folder / f"work{index}")
    number = 0 if is_main() else torch.distributed.get_rank()
    torch.save(results, folder / f"results{number}of{world_size()}.pt")
    if world_size() > 1:
        torch.distributed.barrier()
        os._exit(
            0
        )  # the end of the interpreter aborts now and then after DDP on a CPU, with stock PEFT and Trainer too


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
