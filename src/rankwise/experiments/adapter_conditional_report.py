"""What `rankwise inspect` says of a checkpoint that decides per input."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rankwise.adapters.serving import Stored, serving_verdicts
from rankwise.adapters.spectra import spectrum_of
from rankwise.experiments.adapter_conditional import ConditionalCheckpoint
from rankwise.experiments.adapter_source import Source

if TYPE_CHECKING:
    from rich.table import Table


def describe_conditional(source: Source, checkpoint: ConditionalCheckpoint) -> dict[str, Any]:
    """Ranks, parameters beside the factors, shares and the threshold, as data."""
    modules = {}
    for name, module in checkpoint.modules.items():
        spectrum = spectrum_of(module.pair) if module.pair is not None else None
        modules[name] = {
            "rank": module.rank,
            "parameters": module.pair.rank * module.pair.cost if module.pair is not None else 0,
            "parameters_beside": module.beside,
            "scaling": module.scaling,
            "norm": spectrum.norm if spectrum else None,
            "effective_rank": spectrum.effective_rank if spectrum else None,
            "singular_values": list(spectrum.values) if spectrum else None,
        } | ({"open": checkpoint.usage.get(name)} if checkpoint.decides_on == "modules" else {})
    scalings = {name: module.scaling for name, module in checkpoint.modules.items()}
    verdicts = serving_verdicts(Stored(checkpoint.config, checkpoint.shapes, scalings))
    return {
        "checkpoint": str(source.folder),
        "run_id": source.record.run_id if source.record else None,
        "kind": checkpoint.kind,
        "base_model": checkpoint.frame.base_model,
        "task_type": checkpoint.frame.task_type,
        "parameters": checkpoint.parameters,
        "parameters_beside": checkpoint.beside,
        "threshold": checkpoint.threshold,
        "decides_on": checkpoint.decides_on,
        "share_open": checkpoint.share,
        "usage": checkpoint.usage,
        "dropped": checkpoint.config.get("dropped"),
        "other_tensors": {name: list(value.shape) for name, value in checkpoint.frame.extra.items()},
        "modules": modules,
        "servers": {v.server: {"right": v.right, "problems": list(v.problems)} for v in verdicts},
    }


def conditional_summary(data: Mapping[str, Any]) -> list[str]:
    """The same in sentences."""
    modules = data["modules"].values()
    base = data["base_model"] or "a base model that it does not name"
    lines = [
        f"{data['kind']} for {base}, {data['parameters']:,} adapter parameters ({data['parameters_beside']:,} of them "
        "beside A and B: routers and the like): "
        f"{sum(m['rank'] for m in modules):,} components in {len(modules)} modules",
        f"decides per input, on {data['decides_on']}: open above a probability of {data['threshold']:.3g}",
    ]
    if data["share_open"] is None:
        lines.append("how often is not in the checkpoint: it is measured when training with a method of rankwise ends")
    else:
        never = sum(share == 0 for share in data["usage"].values())
        always = sum(share == 1 for share in data["usage"].values())
        lines.append(
            f"open for {data['share_open']:.1%} of the training examples on average; {never} of "
            f"{len(data['usage'])} {data['decides_on']} never, {always} always"
        )
    if data["dropped"]:
        was, now = (_measured(data["dropped"][when]) for when in ("before", "after"))
        lines.append(f"taken off {len(data['dropped']['modules'])} modules that hardly any opened: {was} -> {now}")
    if data["other_tensors"]:
        lines.append(f"trained whole: {', '.join(data['other_tensors'])}")
    return lines


def conditional_table(data: Mapping[str, Any]) -> "Table":
    """One row per module."""
    from rich.table import Table

    by_module = data["decides_on"] == "modules"
    table = Table(box=None, padding=(0, 1))
    table.add_column("module", no_wrap=True)
    columns = ("rank", "A and B", "beside", "scaling", "‖ΔW‖ where open" if by_module else "‖ΔW‖", "effective rank")
    for column in (*columns, *(("% open",) if by_module else ())):
        table.add_column(column, justify="right")
    for name, row in data["modules"].items():
        numbers = [f"{row['parameters']:,}", f"{row['parameters_beside']:,}"]
        numbers += [_short(row[key]) for key in ("scaling", "norm", "effective_rank")]
        shares = [_short(row["open"], 100)] if by_module else []
        table.add_row(name, str(row["rank"]), *numbers, *shares)
    return table


def _measured(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "examples")


def _short(value: float | None, factor: float = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{factor * value:.3g}"
