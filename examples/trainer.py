"""GLoRA in your own Transformers `Trainer`: build a method, train `method.model`, add one callback, export.

Run it with `python examples/trainer.py`. It adapts the embedded MiniLM (extra `demo`) to tell weather from cooking,
and writes a plain PEFT LoRA checkpoint that loads without Rankwise.
"""

import sys
from itertools import product
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from rankwise.adapters.methods.glora import GloraConfig
from rankwise.training.callback import RankwiseCallback
from rankwise.training.models import load_base_model

STEPS = 40
SKY = product(
    ["a storm", "thick fog", "light rain", "the sun"], ["came up", "was gone", "held on"], ["at dawn", "all day"]
)
POT = product(
    ["the soup", "fresh bread", "a stew", "the sauce"], ["came up", "was gone", "held on"], ["at dawn", "all day"]
)


def main(output: Path) -> Path:
    """Train for a few seconds and return the checkpoint's folder."""
    rows = [{"text": " ".join(words), "labels": label} for label, group in enumerate((SKY, POT)) for words in group]
    base = load_base_model("minilm", num_labels=2, kind="classification", seed=0)
    data = Dataset.from_list(rows).map(lambda row: base.tokenizer(row["text"]), remove_columns="text")

    method = GloraConfig(budget="r=2", warmup=0.25).build(base.model, total_steps=STEPS, seed=0)
    driver = RankwiseCallback(method, total_steps=STEPS)
    arguments = TrainingArguments(str(output / "work"), max_steps=STEPS, learning_rate=1e-3, save_strategy="no", seed=0)
    collator = DataCollatorWithPadding(base.tokenizer)
    Trainer(method.model, arguments, collator, data, callbacks=[driver]).train()

    for event in driver.trace:
        print(f"step {event.step:>2}: {event.event}, ranks {min(event.ranks.values())} to {max(event.ranks.values())}")
    return method.export(output / "adapter")


if __name__ == "__main__":
    print("written to", main(Path(sys.argv[1] if len(sys.argv) > 1 else "trainer-example")))
