"""Tables of the documents, made from results files alone: a comparison, and what each method costs."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any


def results_markdown(content: Mapping[str, Any]) -> str:
    """One row per method, and a line on task, model, budget, seeds, machine and command.

    Args:
        content: what `results.read_results` returns.
    """
    runs: list[dict[str, Any]] = content["runs"]
    methods = list(dict.fromkeys(run["method"] for run in runs))
    metric = next(iter(runs[0]["metrics"]))
    found = {c["arm"]: c for c in content["comparisons"] if c["metric"] == metric}
    reference = next(iter(found.values()))["reference"] if found else methods[0]
    seconds = {run["seed"]: run["train_seconds"] for run in runs if run["method"] == reference}
    lines = [
        f"| method | parameters | peak in training | {metric} ± SE | difference to {reference} [95 %] | time ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method in methods:
        own = [run for run in runs if run["method"] == method]
        cells = [
            f"`{method}`",
            f"{fmean(run['parameters'] for run in own):,.0f}",
            f"{fmean(run['peak_parameters'] for run in own):,.0f}",
            _mean_and_error([run["metrics"][metric] for run in own]),
            _difference(found.get(method)),
            f"{median(run['train_seconds'] / seconds[run['seed']] for run in own if run['seed'] in seconds):.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _where(content, runs, metric)])


def _mean_and_error(values: Sequence[Mapping[str, Any]]) -> str:
    each = [value["value"] for value in values]
    error = stdev(each) / len(each) ** 0.5 if len(each) > 1 else values[0]["se"]
    return f"{fmean(each):.4f} ± {error:.4f}"


def _difference(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return "–"
    low, high = comparison["interval"]
    return f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _where(content: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    first, machine = runs[0], content["machine"]
    seeds = sorted({run["seed"] for run in runs})
    examples = first["metrics"][metric]["n"]
    return (
        f"Task `{first['task']}`, model `{first['model']}`, budget {first['budget']}, {len(seeds)} paired seeds "
        f"({', '.join(map(str, seeds))}), {examples:,} evaluation examples; {machine['cores']} cores of "
        f"{machine['processor']}; made by `{content['command']}`."
    )


def overhead_markdown(content: Mapping[str, Any]) -> str:
    """Wall-clock and memory of every method relative to uniform LoRA, and a line on size, machine and command.

    Args:
        content: what `benchmarks/overhead.py --json` printed.
    """
    lines = [
        "| method | time / lora (IQR) | time / peft_adalora | peak memory / lora | trained at most / kept |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in content["rows"]:
        other = row["ratio_to_peft_adalora"]
        cells = [
            f"`{row['method']}`",
            f"{row['ratio_to_lora']:.3f} ({row['spread']:.3f})",
            "–" if other is None else f"{other:.2f}",
            f"{row['peak_memory_ratio']:.3f}",
            f"{row['peak_parameters_ratio']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    size, machine = content["settings"], content["machine"]
    rounds = [row["rounds"] for row in content["rows"]]
    lines += [
        "",
        f"Embedded model, budget r=4, {size['steps']} steps of {size['batch_size']} x {size['tokens']} tokens, "
        f"{min(rounds)} to {max(rounds)} rounds in turn; {size['threads']} of {machine['cores']} cores of "
        f"{machine['processor']}; made by "
        "`python benchmarks/overhead.py --json`.",
    ]
    return "\n".join(lines)
