"""`rankwise export`, `inspect` and `truncate`: from plain values to plain values, like `commands`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rankwise.adapters.checkpoint import AdapterCheckpoint, read_checkpoint
from rankwise.adapters.contract import Form
from rankwise.adapters.export import write_lora
from rankwise.adapters.serving import Stored, serving_verdicts
from rankwise.adapters.spectra import Spectrum, spectrum_of
from rankwise.adapters.truncate import Truncated, largest_target, truncate_pairs, used_ranks
from rankwise.allocation.budget import Target, parse_budget, spent
from rankwise.errors import BudgetError, ConfigError, Finding
from rankwise.experiments.adapter_base import base_matrices
from rankwise.experiments.adapter_conditional import read_conditional
from rankwise.experiments.adapter_conditional_report import conditional_summary, conditional_table, describe_conditional
from rankwise.experiments.adapter_plots import grid_table, new_plot_path, plot_adapter, plot_usage, rank_table
from rankwise.experiments.adapter_source import Choice, Source, find_source
from rankwise.experiments.card import CardFacts, model_card, short_name
from rankwise.experiments.exporting import KINDS, Exporting, export_source
from rankwise.experiments.hub_upload import prepare_push, upload

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMS: tuple[Form, ...] = get_args(Form)
SHOWN_LOSSES = 5
"""Modules that lost most, which `truncate` names."""


@dataclass(frozen=True)
class Answer:
    """What a command shows: something for `rich` to print (if any), lines of text below it, and the same as data."""

    lines: tuple[str, ...]
    data: dict[str, Any]
    pictures: tuple["RenderableType", ...] = ()


@dataclass(frozen=True)
class ExportOptions:
    """The options of `rankwise export` as they were typed."""

    source: str
    form: str
    output: Path
    choice: Choice = field(default_factory=Choice)
    model: str | None = None
    push: str | None = None
    public: bool = False


def export(options: ExportOptions) -> Answer:
    """Write a checkpoint in another form, with a model card, and put it on the hub if that is asked for.

    Raises:
        ConfigError: a form or repository that is none, several runs to choose from, a merge that cannot be done.
        ModelError, DataError: a checkpoint or base model that cannot be had or read.
        OutputError: the output folder exists, cannot be written, or the hub refused it.
    """
    form = check_form(options.form)
    if options.public and not options.push:
        raise ConfigError("export", [Finding("--public", "only goes with --push: nothing else can be seen by others")])
    push = None if options.push is None else prepare_push(options.push, public=options.public)
    source = find_source(options.source, options.choice)
    made = export_source(source, Exporting(form, options.output, options.model, push.name if push else None))
    lines = [f"{made.what}: {options.output}", *(f"note: {note}" for note in made.notes)]
    data = made.data | {"run_id": source.record.run_id if source.record else None, "notes": list(made.notes)}
    if push is not None:
        data["url"] = upload(options.output, push)
        lines.append(data["url"])
    return Answer(tuple(lines), data)


def check_form(text: str) -> Form:
    """`text` as a form.

    Raises:
        ConfigError: it is none.
    """
    for form in FORMS:
        if text == form:
            return form
    raise ConfigError("export", [Finding("--form", f"'{text}' is none of {', '.join(FORMS)}")])


def inspect(source: str, choice: Choice, plot: Path | None = None) -> Answer:
    """What an adapter checkpoint holds, module by module, and which servers would read it rightly.

    Raises:
        ModelError, DataError: a checkpoint that cannot be had or read, a picture of another kind.
    """
    if plot is not None:
        new_plot_path(plot)
    found = find_source(source, choice)
    if found.conditional is not None:
        return _inspect_conditional(found, plot)
    checkpoint = read_checkpoint(found.folder)
    spectra = {name: spectrum_of(pair) for name, pair in checkpoint.pairs.items()}
    matrices, unknown = base_matrices(checkpoint.frame, download=False)
    ranks = checkpoint.ranks | dict.fromkeys(_dropped(found), 0)
    data = _described(found, checkpoint, spectra)
    data["servers"] = _servers(checkpoint, list(matrices))
    if plot is not None:
        data["plot"] = str(plot_adapter(spectra, ranks, plot, _title(found, checkpoint.frame.base_model)))
    lines = [*_summary(data), *_server_lines(data["servers"]), *([data["plot"]] if plot else [])]
    if unknown:
        lines.append(f"note: the base model is not at hand ({unknown}), so layers without adapters are not known of")
    return Answer(tuple(lines), data, (_module_table(data["modules"]), rank_table(ranks)))


def _inspect_conditional(found: Source, plot: Path | None) -> Answer:
    """The same for a type of our own."""
    checkpoint = read_conditional(found)
    data = describe_conditional(found, checkpoint)
    shares = {name: 100 * share for name, share in checkpoint.usage.items()}
    ranks = checkpoint.ranks | dict.fromkeys(_dropped(found), 0)
    pictures = [conditional_table(data), rank_table(ranks)]
    if shares:
        title = f"% of training examples that open each {checkpoint.decides_on.removesuffix('s')}"
        pictures.append(grid_table(shares, title, 100.0))
    if plot is not None:
        title = _title(found, checkpoint.frame.base_model)
        data["plot"] = str(plot_usage(ranks, shares, plot, title))
    lines = [*conditional_summary(data), *_server_lines(data["servers"]), *([data["plot"]] if plot else [])]
    return Answer(tuple(lines), data, tuple(pictures))


def _title(found: Source, base: str | None) -> str:
    what = f"{found.record.method}, seed {found.record.seed}" if found.record else found.folder.resolve().name
    return f"{what} · {short_name(base)}"


def truncate(source: str, choice: Choice, output: Path, *, keep: str | None, budget: str | None) -> Answer:
    """Cut an adapter down by one singular-value threshold over all its modules, and write it as plain LoRA.

    Raises:
        BudgetError: neither or both of `keep` and `budget`, one that cannot be read, or more than there is.
        ModelError, DataError, OutputError: a checkpoint or folder that cannot be read or written.
    """
    found = find_source(source, choice)
    if found.conditional is not None:
        message = (
            f"{found.folder} is a {found.conditional.TYPE} adapter, which decides per input: no singular values are "
            "the same for all inputs. `rankwise export --form static` writes plain LoRA, which can be truncated"
        )
        raise ConfigError("truncate", [Finding("", message)])
    checkpoint = read_checkpoint(found.folder)
    used = used_ranks(checkpoint.pairs)
    target = truncation_target(used, checkpoint.costs, keep=keep, budget=budget)
    cut = truncate_pairs(checkpoint.pairs, target, checkpoint.costs)
    after = spent(cut.ranks, checkpoint.costs)
    said = (
        f"Truncated after training, by one threshold on the singular values of all modules (PARA, arXiv 2604.27796): "
        f"{after:,} of {spent(used, checkpoint.costs):,} adapter parameters kept, relative Frobenius error of ΔW "
        f"{cut.total_lost:.3g}."
    )
    card = CardFacts(
        form="compact",
        kind="LoRA",
        base=checkpoint.frame.base_model,
        task_type=checkpoint.frame.task_type,
        labels=None,
        ranks=cut.ranks,
        parameters=after,
        record=found.record,
        truncated=said,
    )
    write_lora(checkpoint.frame, cut.pairs, output, files={"README.md": model_card(card)})
    return _cut_down(checkpoint, used, cut, output)


def truncation_target(
    ranks: Mapping[str, int], costs: Mapping[str, int], *, keep: str | None, budget: str | None
) -> Target:
    """What is kept: `40%` of the parameters that are in use, or a budget (`200k`, `r=2`, `24 ranks`).

    Args:
        ranks: components in use per module.
        costs: parameters per component.
        keep: a percentage.
        budget: instead of it.

    Raises:
        BudgetError: see `truncate`.
    """
    if (keep is None) == (budget is None):
        raise BudgetError("say how much is kept: either --keep 40% or --budget 200k")
    have = spent(ranks, costs)
    if keep is not None:
        match = re.fullmatch(r"\s*(\d{1,3}(?:\.\d+)?)\s*%\s*", keep)
        share = float(match[1]) / 100 if match else 0.0
        if not 0 < share < 1:
            raise BudgetError(f"cannot read --keep '{keep}'; write a percentage above 0% and below 100%, such as 40%")
        return largest_target(math.floor(share * have), ranks, costs)
    asked = parse_budget(str(budget))
    if asked.unit == "percent":
        raise BudgetError(f"--budget '{budget}' is a share of the base model; for a share of the adapter use --keep")
    if asked.unit == "ranks":
        target = Target(int(asked.amount), "ranks")
        enough = target.total < sum(ranks.values())
    else:
        per_rank = sum(costs.values()) if asked.unit == "rank" else 1
        target = Target(int(asked.amount) * per_rank, "parameters")
        enough = target.total < have
    if not enough:
        whole = f"{have:,} parameters, {sum(ranks.values()):,} ranks"
        raise BudgetError(f"--budget '{budget}' is no less than is in use ({whole}): there is nothing to cut")
    return target if target.unit == "ranks" else largest_target(target.total, ranks, costs)


def _cut_down(checkpoint: AdapterCheckpoint, used: Mapping[str, int], cut: Truncated, output: Path) -> Answer:
    before = {name: rank for name, rank in used.items() if rank}
    have, after = spent(used, checkpoint.costs), spent(cut.ranks, checkpoint.costs)
    idle = f" ({checkpoint.parameters:,} as saved, the rest does nothing)" if checkpoint.parameters != have else ""
    live = {name: rank for name, rank in cut.ranks.items() if rank}
    worst = sorted(before, key=lambda name: -cut.lost[name] * cut.norms[name])[:SHOWN_LOSSES]
    lines = [
        f"parameters {have:,} -> {after:,} ({after / have:.1%}){idle}",
        f"components {sum(before.values()):,} -> {sum(live.values()):,}, modules {len(before)} -> {len(live)}",
        f"lost {cut.total_lost:.3g} of ‖ΔW‖ over all modules; most of it in:",
        *(
            f"  {name}: rank {before[name]} -> {cut.ranks[name]}, lost {cut.lost[name]:.3g} of {cut.norms[name]:.3g}"
            for name in worst
        ),
        str(output),
    ]
    data = {
        "output": str(output),
        "parameters": {"saved": checkpoint.parameters, "before": have, "after": after},
        "ranks": {"saved": checkpoint.ranks, "before": dict(used), "after": cut.ranks},
        "lost": {"total": cut.total_lost, "modules": cut.lost},
    }
    return Answer(tuple(lines), data)


def _described(source: Source, checkpoint: AdapterCheckpoint, spectra: Mapping[str, Spectrum]) -> dict[str, Any]:
    modules = {
        name: {
            "rank": pair.rank,
            "rank_saved": checkpoint.saved[name].rank,
            "parameters": pair.rank * pair.cost,
            "scaling": checkpoint.saved[name].scaling,
            "norm": spectra[name].norm,
            "largest": spectra[name].largest,
            "smallest": spectra[name].smallest,
            "effective_rank": spectra[name].effective_rank,
            "stable_rank": spectra[name].stable_rank,
            "singular_values": list(spectra[name].values),
        }
        for name, pair in checkpoint.pairs.items()
    }
    return {
        "checkpoint": str(source.folder),
        "run_id": source.record.run_id if source.record else None,
        "kind": checkpoint.kind,
        "base_model": checkpoint.frame.base_model,
        "task_type": checkpoint.frame.task_type,
        "parameters": checkpoint.parameters,
        "other_tensors": {name: list(value.shape) for name, value in checkpoint.frame.extra.items()},
        "norm": math.sqrt(math.fsum(spectrum.norm**2 for spectrum in spectra.values())),
        "modules": modules,
    }


def _dropped(source: Source) -> list[str]:
    """Modules of the run that ended without an adapter: the checkpoint does not name them."""
    return [name for name, rank in source.record.rank_pattern.items() if not rank] if source.record else []


def _servers(checkpoint: AdapterCheckpoint, modules: list[str]) -> dict[str, Any]:
    scalings = {name: saved.scaling for name, saved in checkpoint.saved.items()}
    stored = Stored(checkpoint.config, checkpoint.shapes, scalings, modules)
    return {v.server: {"right": v.right, "problems": list(v.problems)} for v in serving_verdicts(stored)}


def _summary(data: Mapping[str, Any]) -> list[str]:
    modules = data["modules"]
    live = [m for m in modules.values() if m["rank"]]
    kind = KINDS[data["kind"].upper()]
    lines = [
        f"{kind} for {data['base_model'] or 'a base model that it does not name'}, {data['parameters']:,} adapter "
        f"parameters: {sum(m['rank'] for m in live):,} components in {len(live)} of {len(modules)} modules, "
        f"‖ΔW‖ {data['norm']:.4g}"
    ]
    if data["other_tensors"]:
        lines.append(f"trained whole: {', '.join(data['other_tensors'])}")
    return lines


def _server_lines(servers: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {'reads it as PEFT does' if verdict['right'] else '; '.join(verdict['problems'])}"
        for name, verdict in servers.items()
    ]


def _module_table(modules: Mapping[str, Mapping[str, Any]]) -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    table.add_column("module", no_wrap=True)
    for column in ("rank", "parameters", "scaling", "‖ΔW‖", "σ max", "σ min", "effective rank", "stable rank"):
        table.add_column(column, justify="right")
    for name, row in modules.items():
        keys = ("scaling", "norm", "largest", "smallest", "effective_rank", "stable_rank")
        table.add_row(name, str(row["rank"]), f"{row['parameters']:,}", *(f"{row[key]:.3g}" for key in keys))
    return table
