"""Tables of docs/costs.md, from results files alone."""

from collections.abc import Mapping
from typing import Any

from rankwise.costs.claims import MISSING, claims

VARIANTS = {
    "base": "frozen base model",
    "lora": "LoRA, unmerged (PEFT)",
    "lora_fused": "LoRA, unmerged (fused)",
    "lora_merged": "LoRA, merged",
    "cogalora_module": "CoGaLoRA, a router per module",
    "cogalora_shared": "CoGaLoRA, a shared router",
}


def claims_markdown(conditional: Mapping[str, Any] | None, overhead: Mapping[str, Any] | None) -> str:
    """What the records say, what arithmetic allows, what was measured.

    Args:
        conditional: what `benchmarks/conditional.py` wrote, if it did.
        overhead: what `benchmarks/overhead.py` wrote, if it did.
    """
    lines = ["| record | what it says | what arithmetic allows | measured |", "|---|---|---|---|"]
    rows = claims(conditional, overhead)
    return "\n".join([*lines, *(f"| {row.where} | {row.says} | {row.bound} | {row.measured} |" for row in rows)])


def latency_markdown(conditional: Mapping[str, Any] | None) -> str:
    """Latencies and FLOPs of `benchmarks/conditional.py`, per model, and a line on how they were made."""
    if not conditional:
        return MISSING
    parts = [_model(name, model) for name, model in conditional["models"].items()]
    size, machine = conditional["settings"], conditional["machine"]
    note = f" ({size['note']})" if size["note"] else ""
    how = (
        f"Rank {size['rank']} on every matrix, {size['active']:.0%} of the gates open, {size['tokens']} tokens, "
        f"{size['rounds']} rounds in turn; {size['threads']} of {machine['cores']} cores of {machine['processor']}; "
        f"made by `python benchmarks/conditional.py`{note}."
    )
    return "\n\n".join([*parts, how])


def _model(name: str, model: Mapping[str, Any]) -> str:
    title = f"`{name}`: {model['layers']} blocks of width {model['width']}"
    sizes = list(model["latency"])
    head = " | ".join(f"batch {size}: p50 / p95 ms | to merged (quartiles) | to unmerged" for size in sizes)
    lines = [
        title,
        "",
        f"| | {head} | adapters and routing, share of FLOPs |",
        f"|---|{'---:|' * (3 * len(sizes) + 1)}",
    ]
    for key, words in VARIANTS.items():
        cells = [cell for size in sizes for cell in _latency(model["latency"][size][key])]
        flops = model["flops"].get(key)
        shares = f"{flops['adapter_share']:.2%}, {flops['routing_share']:.2%}" if flops else "–"
        lines.append(f"| {words} | {' | '.join(cells)} | {shares} |")
    return "\n".join(lines)


def _latency(row: Mapping[str, Any]) -> tuple[str, str, str]:
    merged, fused = row["to_lora_merged"], row["to_lora_fused"]
    return (
        f"{row['p50_ms']:.1f} / {row['p95_ms']:.1f}",
        f"{merged['median']:.3f} ({merged['low']:.3f} to {merged['high']:.3f})",
        f"{fused['median']:.3f}",
    )
