"""What a method costs over uniform LoRA: wall-clock and peak memory, measured in turn.

    python benchmarks/overhead.py --json

Every method trains the same batches on the embedded model in one process. Methods take turns in short rounds, in a new
random order each round, so that whatever else the machine does hits all of them; the ratio is the median over
rounds of a method's time over uniform LoRA's in the same round, the spread its interquartile range; the ratio to
PEFT's AdaLoRA is given where that is measured. Peak memory is the highest resident size of a process of its own (the
median of three for methods with a limit to hold). A method that trains more parameters than it keeps says so:
`peak_parameters_ratio` is the most it trained at once over what it ended with.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwise.experiments.environment import machine, versions
from rankwise.experiments.schema import method_registry

CLASSES = 6
CORE = ("lora", "glora", "adalora", "peft_adalora")
"""Methods with a limit to hold; they are measured in every round, the others in the first ones only."""
REPEATS = 3
"""Processes per method of `CORE` whose peak memory is taken; one for the others."""
MEMORY_STEPS = 12
"""Steps they train: the peak is reached within a few."""


@dataclass(frozen=True)
class Settings:
    """Size of one round."""

    steps: int
    batch_size: int
    tokens: int


@dataclass(frozen=True)
class Once:
    """One short training: seconds spent, adapter parameters at the end and at most."""

    seconds: float
    final: int
    peak: int


def train_once(name: str, settings: Settings) -> Once:
    """Train one method from scratch on fixed random tokens."""
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
        seconds = fit(method, base.tokenizer, data, {}, how, work_dir=Path(folder)).train_seconds
    count = method.parameter_count()
    return Once(seconds, count.final, count.peak)


def measure_times(names: tuple[str, ...], settings: Settings, rounds: int, others: int) -> dict[str, list[Once]]:
    """Every method's rounds, in turn; the first round warms up and is thrown away.

    `others`: rounds of the methods that are not in `CORE`.
    """
    order = random.Random(0)
    times: dict[str, list[Once]] = {name: [] for name in names}
    for number in range(rounds + 1):
        now = names if number <= others else [name for name in names if name in CORE]
        for name in order.sample(now, len(now)):
            once = train_once(name, settings)
            if number:
                times[name].append(once)
            print(f"round {number}/{rounds} {name:<14}{once.seconds:7.2f} s", file=sys.stderr)
    return times


def _peak_of(name: str, settings: Settings, queue: "multiprocessing.Queue[int]") -> None:
    train_once(name, settings)
    queue.put(_peak_resident())


def _peak_resident() -> int:
    """Bytes. Linux: of this program alone (`ru_maxrss` starts at what the parent had when it was spawned)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_peak(name: str, settings: Settings) -> int:
    """Highest resident size in bytes of a fresh process that trains `name`; the median of some."""
    context = multiprocessing.get_context("spawn")
    found = []
    for _ in range(REPEATS if name in CORE else 1):
        queue: multiprocessing.Queue[int] = context.Queue()
        process = context.Process(target=_peak_of, args=(name, settings, queue))
        process.start()
        found.append(queue.get())
        process.join()
    print(f"memory {name:<14}{[f'{peak / 2**20:.1f}' for peak in found]} MiB", file=sys.stderr)
    return int(statistics.median(found))


def rows(names: tuple[str, ...], times: dict[str, list[Once]]) -> list[dict[str, object]]:
    """One row per method, relative to uniform LoRA."""
    found: list[dict[str, object]] = []
    for name in names:
        ratios = _ratios(times, name, "lora")
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        last = times[name][-1]
        found.append(
            {
                "method": name,
                "ratio_to_lora": round(statistics.median(ratios), 4),
                "spread": round(quartiles[2] - quartiles[0], 4),
                "ratio_to_peft_adalora": round(statistics.median(_ratios(times, name, "peft_adalora")), 4)
                if "peft_adalora" in times
                else None,
                "peak_memory_ratio": None,
                "peak_parameters_ratio": round(last.peak / last.final, 3),
                "final_parameters": last.final,
                "seconds": round(statistics.median(once.seconds for once in times[name]), 3),
                "rounds": len(ratios),
            }
        )
    return found


def add_memory(found: list[dict[str, object]], settings: Settings) -> None:
    """Measure every row's method and fill in `peak_memory_ratio`."""
    peaks = {
        str(row["method"]): measure_peak(str(row["method"]), replace(settings, steps=MEMORY_STEPS)) for row in found
    }
    for row in found:
        row["peak_memory_ratio"] = round(peaks[str(row["method"])] / peaks["lora"], 4)


def fill_memory(path: Path) -> None:
    """The same for a file that was written with `--no-memory`."""
    content = json.loads(path.read_text())
    size = content["settings"]
    add_memory(content["rows"], Settings(size["steps"], size["batch_size"], size["tokens"]))
    path.write_text(json.dumps(content, indent=1) + "\n")


def put_into(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """`path` with the rows of `result` in it; uniform LoRA's row stays what it was.

    Raises:
        SystemExit: they were measured with other settings, on another machine or with other versions.
    """
    content: dict[str, Any] = json.loads(path.read_text())
    if other := [key for key in ("settings", "machine", "versions") if content[key] != result[key]]:
        raise SystemExit(f"{path} was measured with other {' and '.join(other)}; measure everything anew")
    fresh = {row["method"]: row for row in result["rows"] if row["method"] != "lora"}
    kept = [row for row in content["rows"] if row["method"] not in fresh]
    return content | {"rows": [kept[0], *sorted([*kept[1:], *fresh.values()], key=lambda row: str(row["method"]))]}


def _ratios(times: dict[str, list[Once]], name: str, other: str) -> list[float]:
    return [own.seconds / base.seconds for own, base in zip(times[name], times[other], strict=False)]  # same rounds


def main() -> None:
    """Measure and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", help="methods, with commas (default: all); lora is always measured")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of all methods")
    parser.add_argument("--others", type=int, default=3, help="rounds of the methods without a limit to hold")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps per round")
    parser.add_argument("--batch-size", type=int, default=8, help="examples per step")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per example")
    parser.add_argument("--no-memory", action="store_true", help="times only; `--memory-into` adds the rest later")
    parser.add_argument("--memory-into", type=Path, help="measure memory only and fill it into this JSON file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--into", type=Path, help="put the rows of --methods into this file, beside those it has")
    options = parser.parse_args()
    if options.memory_into:
        fill_memory(options.memory_into)
        return
    names = tuple(dict.fromkeys(["lora", *(options.methods.split(",") if options.methods else method_registry())]))
    settings = Settings(options.steps, options.batch_size, options.tokens)
    times = measure_times(names, settings, options.rounds, options.others)
    found = rows(names, times)
    if not options.no_memory:
        add_memory(found, settings)
    result = {
        "rows": found,
        "settings": vars(settings) | {"threads": torch.get_num_threads()},
        "machine": machine(),
        "versions": versions(),
    }
    if options.into:
        result = put_into(options.into, result)
        options.output = options.into
    text = json.dumps(result, indent=1)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")
    if options.json:
        print(text)
        return
    columns = ("ratio_to_lora", "spread", "ratio_to_peft_adalora", "peak_memory_ratio", "peak_parameters_ratio")
    print(f"{'method':<14}" + "".join(f"{column:>{len(column) + 2}}" for column in columns))
    for row in found:
        print(f"{row['method']:<14}" + "".join(f"{row[column]!s:>{len(column) + 2}}" for column in columns))


if __name__ == "__main__":
    main()
