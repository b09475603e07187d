"""Costs as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankwise.experiments.cost_subject import BASE, FUSED, LORA, MERGED, OWN, OWN_MERGED

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Data = Mapping[str, Any]
PARTS = {
    "base": "base model",
    "head": "head",
    "factors": "adapter factors",
    "routers": "routers",
    "generators": "banks and generators",
    "trained": "trained in all",
}


def cost_tables(data: Data) -> list["RenderableType"]:
    """Parameters, FLOPs, latency, and memory if it was measured."""
    tables: list[RenderableType] = [_parameters(data), _flops(data), *(_latency(data, at) for at in data["latency"])]
    return [*tables, _memory(data)] if "memory" in data else tables


def summary_table(each: Sequence[Data]) -> "RenderableType":
    """One row per checkpoint."""
    sizes = [at["batch_size"] for at in each[0]["latency"]]
    table = _table("run", "trained parameters", "adapters in use", "FLOPs", *(f"latency at {size}" for size in sizes))
    for data in each:
        active = data["activity"]
        ratios = [at["variants"][data["served"]]["ratio"] for at in data["latency"]]
        table.add_row(
            str(data["run_id"]),
            f"{data['parameters']['trained']:,}",
            "–" if active is None else f"{active['share']:.1%}",
            f"{data['flops']['served_to_merged']:.4f}",
            *(f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" for ratio in ratios),
        )
    title = "ratios to merged LoRA of the same ranks, as served (merged where that can be); latency: median (quartiles)"
    return _titled(title, table)


def name_of(variant: str, kind: str) -> str:
    """A variant in words."""
    names = {
        BASE: "fully fine-tuned model" if kind == "fully fine-tuned model" else "frozen base model",
        LORA: "LoRA of the same ranks, unmerged (PEFT)",
        FUSED: "LoRA of the same ranks, unmerged (fused)",
        MERGED: "LoRA of the same ranks, merged",
        OWN: f"{kind}, as saved",
        OWN_MERGED: f"{kind}, merged",
    }
    return names[variant].replace("LoRA of the same ranks", "LoRA") if kind == "LoRA" else names[variant]


def _parameters(data: Data) -> "RenderableType":
    counts = data["parameters"]
    table = _table("", "number", "of the base model")
    for key, words in PARTS.items():
        if counts[key] or key in ("base", "trained"):
            table.add_row(words, f"{counts[key]:,}", "" if key == "base" else f"{counts[key] / counts['base']:.3%}")
    return _titled("parameters", table)


def _flops(data: Data) -> "RenderableType":
    flops, active, inputs = data["flops"], data["activity"], data["inputs"]
    table = _table("", "FLOPs", "of the total", "of the frozen base model")
    for key, words in (("base", "base model"), ("adapters", "adapters"), ("routing", "routing"), ("total", "total")):
        if flops[key] or key in ("base", "total"):
            share = f"{flops[key] / flops['total']:.3%}"
            table.add_row(words, f"{flops[key]:,.0f}", share, f"{flops[key] / flops['base_alone']:.3%}")
    table.add_row("frozen base model (LoRA, merged)", f"{flops['base_alone']:,.0f}")
    if active is not None and active["decided"]:
        table.add_row("adapters, were all of them used in full", f"{flops['adapters_all_open']:,.0f}")
        table.add_row("share of adapters in use", f"{active['share']:.1%}")
        table.add_row(f"components in use, of {active['full_rank']:,}", f"{active['total_rank']:.1f}")
    title = f"FLOPs per example as executed: {inputs['what']}, {inputs['tokens']:.1f} tokens on average"
    return _titled(title, table)


def _latency(data: Data, at: Data) -> "RenderableType":
    table = _table("", "p50", "p95", f"ratio to {_short(data)}: median (quartiles)")
    for name, row in at["variants"].items():
        ratio = row["ratio"]
        shown = f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        table.add_row(
            name_of(name, data["kind"]),
            f"{row['p50'] * 1e3:.2f}",
            f"{row['p95'] * 1e3:.2f}",
            "1" if name == data["reference"] else shown,
        )
    return _titled(f"latency in ms at batch size {at['batch_size']}, {at['rounds']} rounds in turn", table)


def _memory(data: Data) -> "RenderableType":
    where = "the GPU's" if data["device"].startswith("cuda") else "of a process of its own, libraries included"
    table = _table("", "weights", "peak", "forward passes alone")
    for name, row in data["memory"]["variants"].items():
        cells = ["–" if row[key] is None else f"{row[key] / 2**20:.1f}" for key in ("weights", "peak", "passes")]
        table.add_row(name_of(name, data["kind"]), *cells)
    return _titled(f"memory in MiB at batch size {data['memory']['batch_size']}; peak: {where}", table)


def _short(data: Data) -> str:
    return {MERGED: "merged LoRA", OWN_MERGED: "the merged model", BASE: "the model"}[data["reference"]]


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _titled(title: str, table: "Table") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title, style="bold"), table)
