"""Block mode against merged LoRA: latency and compute against accuracy.

    RANKWISE_DATA=… python benchmarks/block_frontier.py --tasks glue/sst2,glue/qnli --output results.jsonl

One JSON line per finished point; points whose line is there are skipped, so a killed run goes on where it was. A point
is a task, a target share of the blocks that can be skipped, a seed and a number of steps. Uniform LoRA of the same
budget and the same steps is a point of its own (`keep: 1`): what all others are compared with.

`--fixed 1000,1100` measures the control instead: the blocks marked 0 are taken out of the model for every input, before
plain LoRA is trained on what is left. Deciding per input has to beat that at equal cost. `--budget` in parameters makes
both equally large.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.lora import LoraModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DataCollatorWithPadding

from rankwise.adapters.block_method import BlockMethod, merge_static
from rankwise.adapters.conditional.block_settings import BlockSettings
from rankwise.adapters.contract import AdapterConfig
from rankwise.adapters.methods.lora import LoraConfig
from rankwise.adapters.methods.radlora import RadloraConfig
from rankwise.experiments.environment import machine, versions
from rankwise.tasks import canonical_task, parse_task_spec
from rankwise.training.data import encode
from rankwise.training.fit import FitSettings, fit
from rankwise.training.models import load_base_model

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TARGETS = (0.3, 0.4, 0.5, 0.65, 0.8)
BLOCK_ONLY = (
    "router_after",
    "keep_last",
    "bypass_rank",
    "patterns",
    "full_depth",
    "full_rows",
    "distillation",
    "coldest",
)
"""Settings of block mode that plain LoRA has no use for."""
FIXED = "fixed "
"""How `Point.patterns` begins where one pattern holds for every input."""


@dataclass(frozen=True)
class Point:
    """What a line stands for; `keep` is 1 for uniform LoRA."""

    task: str
    keep: float
    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    budget: str
    router_after: int
    keep_last: int
    bypass_rank: int
    patterns: str
    full_depth: float
    full_rows: float
    distillation: float
    coldest: float
    max_length: int


def method_config(point: Point) -> AdapterConfig:
    """Uniform LoRA, or block mode."""
    if point.keep == 1 or fixed_pattern(point):
        return LoraConfig(budget=point.budget)
    patterns = int(point.patterns) if point.patterns.isdigit() else point.patterns
    block = BlockSettings.model_validate(
        {
            "keep": point.keep,
            "router_after": point.router_after,
            "keep_last": point.keep_last,
            "bypass_rank": point.bypass_rank,
            "patterns": patterns,
            "full_depth": point.full_depth,
            "full_rows": point.full_rows,
            "annealing": min(0.9, point.full_depth + 0.3),
            "distillation": point.distillation,
            "temperature": [2.0, point.coldest],
        }
    )
    return RadloraConfig(budget=point.budget, depth="block", block=block)


def fixed_pattern(point: Point) -> str:
    """The blocks between the router's and the last ones that every input runs, one 0 or 1 each; empty: it decides."""
    return point.patterns.removeprefix(FIXED) if point.patterns.startswith(FIXED) else ""


def shorten(model: nn.Module, point: Point) -> None:
    """Take out of a model what `fixed_pattern` leaves out."""
    blocks = _blocks(model)
    bits = "1" * (point.router_after + 1) + fixed_pattern(point) + "1" * point.keep_last
    if len(bits) != len(blocks):
        raise SystemExit(f"--fixed: with what always runs, {fixed_pattern(point)} is {bits}, for {len(blocks)} blocks")
    for number in reversed([number for number, bit in enumerate(bits) if bit == "0"]):
        del blocks[number]


def _blocks(model: nn.Module) -> nn.ModuleList:
    found = model.get_submodule("bert.encoder.layer")
    assert isinstance(found, nn.ModuleList)
    return found


def run(point: Point, examples: int, log_every: int = 100) -> dict[str, object]:
    """Train and measure one point."""
    data = parse_task_spec(point.task).load()
    base = load_base_model("minilm", num_labels=data.num_labels, kind=data.kind, seed=point.seed)
    if fixed_pattern(point):
        shorten(base.model, point)
    method = method_config(point).build(base.model, total_steps=point.steps, seed=point.seed)
    train = encode(data.train, base.tokenizer, point.max_length)
    validation = encode(next(iter(data.validation.values())), base.tokenizer, point.max_length)
    how = FitSettings(
        total_steps=point.steps,
        batch_size=point.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=point.learning_rate,
        weight_decay=0.0,
        warmup=0.06,
        schedule="linear",
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        precision="fp32",
        evaluation_batch_size=64,
        seed=point.seed,
    )

    def report(step: int, loss: float | None) -> None:
        if step % log_every == 0:
            print(f"{point.task} keep {point.keep} seed {point.seed}: step {step}, loss {loss:.3f}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(method, base.tokenizer, train, {"main": validation}, how, work_dir=Path(folder), on_step=report)
    logits, labels = torch.tensor(fitted.logits["main"]), torch.tensor(fitted.references["main"])
    found: dict[str, object] = {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "examples": len(labels),
        "parameters": method.parameter_count().final,
        "train_seconds": round(fitted.train_seconds, 1),
    }
    plain = load_base_model("minilm", num_labels=data.num_labels, kind=data.kind, seed=0).model.eval()
    if isinstance(method, BlockMethod):
        found |= _measure(method, base.tokenizer, validation, plain, examples)
    elif fixed_pattern(point):
        model = cast(LoraModel, method.model.base_model).merge_and_unload().eval()
        share = len(_blocks(model)) / len(_blocks(plain))
        batches = _batches(base.tokenizer, validation, examples)
        found |= {"share_of_all_blocks": share} | _costs(model, plain, batches)
    return found


def _measure(
    method: BlockMethod, tokenizer: "PreTrainedTokenizerBase", validation: "Dataset", plain: nn.Module, examples: int
) -> dict[str, object]:
    """Shares, FLOPs and latencies, with LoRA merged."""
    model = merge_static(method.model).eval()
    batches = _batches(tokenizer, validation, examples)
    kept = [_kept(method, model, batch) for batch in batches[8]]
    bits = torch.cat(kept)
    patterns = ["".join(str(int(bit)) for bit in row) for row in bits.tolist()]
    always = method.settings.router_after + 1 + method.settings.keep_last
    found: dict[str, object] = {
        "measured_on_train": method.measured,
        "share_of_later_blocks": float(bits.mean()),
        "share_per_block": dict(zip(method.peft.blocks or (), bits.mean(0).tolist(), strict=True)),
        "share_of_all_blocks": (float(bits.sum(1).mean()) + always) / (bits.shape[1] + always),
        "patterns": {name: patterns.count(name) for name in sorted(set(patterns), key=lambda p: -patterns.count(p))},
    }
    return found | _costs(model, plain, batches)


Batches = dict[int, list[dict[str, torch.Tensor]]]


def _batches(tokenizer: "PreTrainedTokenizerBase", validation: "Dataset", examples: int) -> Batches:
    """The same inputs by batch size."""
    collate = DataCollatorWithPadding(tokenizer)
    shuffled = validation.shuffle(seed=0).remove_columns(["length"])
    rows = [shuffled[i] for i in range(min(examples, len(shuffled)))]
    return {size: [dict(collate(rows[i : i + size])) for i in range(0, len(rows) - size + 1, size)] for size in (1, 8)}


def _costs(model: nn.Module, plain: nn.Module, batches: Batches) -> dict[str, object]:
    found: dict[str, object] = {"flops_ratio": _flops(model, batches[8]) / _flops(plain, batches[8])}
    for size in (1, 8):
        found[f"latency_{size}"] = _latencies(model, plain, batches[size])
    return found


@torch.no_grad()
def _kept(method: BlockMethod, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model(**batch)
    (bits,) = method.context.kept.values()
    result: torch.Tensor = bits
    return result


@torch.no_grad()
def _flops(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> int:
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            model(**batch)
    return int(counter.get_total_flops())


@torch.no_grad()
def _latencies(
    model: nn.Module, plain: nn.Module, batches: list[dict[str, torch.Tensor]], rounds: int = 3
) -> dict[str, float]:
    """Median seconds of both, in turn, and the ratio of the medians; the first batches warm up."""
    times: dict[str, list[float]] = {"block": [], "merged": []}
    for number in range(rounds):
        for place, batch in enumerate(batches):
            pair = [("block", model), ("merged", plain)]
            for name, each in pair if (place + number) % 2 else pair[::-1]:
                begun = time.perf_counter()
                each(**batch)
                if number or place >= 5:
                    times[name].append(time.perf_counter() - begun)
    block, merged = (statistics.median(times[name]) for name in ("block", "merged"))
    return {"block": block, "merged": merged, "p50_ratio": block / merged, "mean_ratio": _mean_ratio(times)}


def _mean_ratio(times: dict[str, list[float]]) -> float:
    return statistics.fmean(times["block"]) / statistics.fmean(times["merged"])


def wanted_points(options: argparse.Namespace) -> Iterator[Point]:
    """Uniform LoRA of every task and seed first, then block mode."""
    for task in options.tasks.split(","):
        first = Point(
            task=str(canonical_task(task)),
            keep=1.0,
            seed=0,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            budget=options.budget,
            router_after=options.router_after,
            keep_last=options.keep_last,
            bypass_rank=options.bypass_rank,
            patterns=options.patterns,
            full_depth=options.full_depth,
            full_rows=options.full_rows,
            distillation=options.distillation,
            coldest=options.coldest,
            max_length=options.max_length,
        )
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for keep in () if options.fixed else (1.0, *options.targets):
                yield replace(first, seed=seed, keep=keep)
            for bits in options.fixed:
                yield replace(first, seed=seed, keep=bits.count("1") / len(bits), patterns=f"{FIXED}{bits}")


def known_points(path: Path) -> list[dict[str, object]]:
    """What the lines of a results file stand for; of LoRA, without the settings of block mode."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [_identity(Point(**json.loads(line)["point"])) for line in lines]


def _identity(point: Point) -> dict[str, object]:
    fields = asdict(point)
    if point.keep == 1:
        for name in BLOCK_ONLY:
            fields.pop(name)
    return fields


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds; the loss against LoRA is paired by seed, ± its standard error."""
    plain = {(line["point"]["task"], line["point"]["seed"]): line for line in lines if line["point"]["keep"] == 1}
    groups: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        point = line["point"]
        if point["keep"] < 1 and (point["task"], point["seed"]) in plain:
            groups.setdefault((point["task"], point["keep"], point["patterns"]), []).append(line)
    head = (
        "task",
        "keep",
        "seeds",
        "LoRA",
        "accuracy",
        "loss, points",
        "blocks",
        "FLOPs",
        "p50, batch 1",
        "p50, batch 8",
    )
    rows = [head, ("---",) * len(head)]
    for (task, keep, patterns), found in sorted(groups.items()):
        base = [plain[task, line["point"]["seed"]]["accuracy"] for line in found]
        lost = [100 * (one - line["accuracy"]) for one, line in zip(base, found, strict=True)]
        error = f" ± {statistics.stdev(lost) / len(lost) ** 0.5:.1f}" if len(lost) > 1 else ""

        def mean(*path: str, found: Sequence[Mapping[str, Any]] = found) -> str:
            values = [line[path[0]][path[1]] if len(path) > 1 else line[path[0]] for line in found]
            return f"{statistics.fmean(values):.3f}"

        rows.append(
            (
                task,
                patterns if patterns.startswith(FIXED) else f"{keep:g}",
                str(len(found)),
                f"{statistics.fmean(base):.3f}",
                mean("accuracy"),
                f"{statistics.fmean(lost):.1f}{error}",
                mean("share_of_all_blocks"),
                mean("flops_ratio"),
                mean("latency_1", "p50_ratio"),
                mean("latency_8", "p50_ratio"),
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Run what is missing, one line per point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="glue/sst2,docstrings", help="tasks, with commas")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="shares of the blocks after the router")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=16, help="examples per step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of both methods")
    parser.add_argument("--budget", default="r=8", help="adapter parameters of both methods")
    parser.add_argument("--router-after", type=int, default=0, help="see BlockSettings")
    parser.add_argument("--keep-last", type=int, default=1, help="see BlockSettings")
    parser.add_argument("--bypass-rank", type=int, default=8, help="see BlockSettings")
    parser.add_argument("--patterns", default="any", help="see BlockSettings")
    parser.add_argument("--fixed", default="", help="patterns to train plain LoRA on instead, as 1000,1100")
    parser.add_argument("--full-depth", type=float, default=0.2, help="see BlockSettings; annealing takes 0.3 more")
    parser.add_argument("--full-rows", type=float, default=0.25, help="see BlockSettings")
    parser.add_argument("--distillation", type=float, default=1.0, help="see BlockSettings")
    parser.add_argument("--coldest", type=float, default=0.5, help="temperature of the decisions at the end")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--examples", type=int, default=400, help="validation examples for FLOPs and latencies")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="60 steps, one seed, one target: does it run?")
    parser.add_argument("--output", type=Path, default=Path("block_frontier.jsonl"), help="results file")
    parser.add_argument("--table", action="store_true", help="print a results file as a Markdown table, run nothing")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.output.read_text().splitlines()]))
        return
    options.targets = [float(part) for part in options.targets.split(",")]
    options.fixed = [part for part in options.fixed.split(",") if part]
    if options.quick:
        options.steps, options.seeds, options.targets, options.examples = 60, 1, [0.5], 80
    torch.set_num_threads(options.threads)
    environment = {"machine": machine(), "versions": versions(), "threads": options.threads}
    for point in wanted_points(options):
        if _identity(point) in known_points(options.output):
            continue
        line = {"point": asdict(point), **run(point, options.examples), **environment}
        with options.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: line[key] for key in line if key not in environment}))


if __name__ == "__main__":
    main()
