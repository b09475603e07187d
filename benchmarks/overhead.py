"""What a method costs over uniform LoRA: wall-clock and peak memory, measured in turn.

    python benchmarks/overhead.py --json

Every method trains the same batches on the embedded model in one process. Methods take turns in short rounds, in a new
random order each round, so that whatever else the machine does hits all of them; the ratio is the median over
rounds of a method's time over uniform LoRA's in the same round, the spread its interquartile range. Peak memory is
the highest resident size of a process of its own per method.

A round is a whole short run, reallocation included, with training time alone on the clock.
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rankwise.experiments.environment import machine, versions
from rankwise.experiments.schema import method_registry

METHODS = ("lora", "glora", "peft_adalora")
CLASSES = 6


@dataclass(frozen=True)
class Settings:
    """Size of one round."""

    steps: int
    batch_size: int
    tokens: int


def train_once(name: str, settings: Settings) -> float:
    """Train one method from scratch on fixed random tokens; seconds spent training."""
    import torch
    from datasets import Dataset

    from rankwise.training.fit import FitSettings, fit
    from rankwise.training.models import load_base_model

    base = load_base_model("minilm", num_labels=CLASSES, kind="classification", seed=0)
    method = (
        method_registry()[name].model_validate({"name": name}).build(base.model, total_steps=settings.steps, seed=0)
    )
    generator = torch.Generator().manual_seed(0)
    rows = settings.steps * settings.batch_size
    tokens = torch.randint(1000, 20000, (rows, settings.tokens), generator=generator).tolist()
    labels = torch.randint(CLASSES, (rows,), generator=generator).tolist()
    masks = [[1] * settings.tokens] * rows
    data = Dataset.from_dict(
        {"input_ids": tokens, "attention_mask": masks, "labels": labels, "length": [settings.tokens] * rows}
    )
    how = FitSettings(
        total_steps=settings.steps,
        batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup=0.1,
        schedule="linear",
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        precision="fp32",
        evaluation_batch_size=64,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        return fit(method, base.tokenizer, data, {}, how, work_dir=Path(folder)).train_seconds


def measure_times(names: tuple[str, ...], settings: Settings, rounds: int) -> dict[str, list[float]]:
    """Seconds per method and round; the first round warms up and is thrown away."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in order.sample(names, len(names)):
            seconds = train_once(name, settings)
            if number:
                times[name].append(seconds)
            print(f"round {number}/{rounds} {name:<14}{seconds:7.2f} s", file=sys.stderr)
    return times


def _peak_of(name: str, settings: Settings, queue: "multiprocessing.Queue[int]") -> None:
    train_once(name, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put(peak if sys.platform == "darwin" else peak * 1024)


def measure_peak(name: str, settings: Settings) -> int:
    """Highest resident size in bytes of a fresh process that trains `name`."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=_peak_of, args=(name, settings, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak


def rows(names: tuple[str, ...], times: dict[str, list[float]], peaks: dict[str, int]) -> list[dict[str, object]]:
    """One row per method, relative to uniform LoRA."""
    found: list[dict[str, object]] = []
    for name in names:
        ratios = [own / base for own, base in zip(times[name], times["lora"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        found.append(
            {
                "method": name,
                "ratio_to_lora": round(statistics.median(ratios), 4),
                "spread": round(quartiles[2] - quartiles[0], 4),
                "peak_memory_ratio": round(peaks[name] / peaks["lora"], 4),
                "seconds": round(statistics.median(times[name]), 3),
                "rounds": len(ratios),
            }
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, with commas; lora is always measured")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of all methods")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps per round")
    parser.add_argument("--batch-size", type=int, default=8, help="examples per step")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per example")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    names = tuple(dict.fromkeys(["lora", *options.methods.split(",")]))
    settings = Settings(options.steps, options.batch_size, options.tokens)
    times = measure_times(names, settings, options.rounds)
    peaks = {name: measure_peak(name, settings) for name in names}
    found = rows(names, times, peaks)
    result = {
        "rows": found,
        "settings": vars(settings),
        "machine": machine(),
        "versions": versions(),
    }
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    if options.json:
        print(text)
        return
    print(f"{'method':<14}{'ratio to lora':>14}{'spread':>9}{'peak memory':>13}")
    for row in found:
        print(f"{row['method']:<14}{row['ratio_to_lora']:>14}{row['spread']:>9}{row['peak_memory_ratio']:>13}")


if __name__ == "__main__":
    main()
