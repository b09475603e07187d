"""Tables of the documents, made from results files alone: a comparison, and what each method costs."""

import math
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


def verdicts_markdown(content: Mapping[str, Any]) -> str:
    """A plan's question, one row per claim, and a line on tasks, runs, machine and command.

    Args:
        content: of `verdicts.json`.
    """
    level = 100 * next((v["confidence"] for v in content["verdicts"] if v.get("confidence")), 0.9)
    lines = [
        f"**{content['plan']}**, {content['profile']}: {content['question']}",
        "",
        f"| claim | tested | estimate [{level:g} %] | seeds | verdict |",
        "|---|---|---:|---:|---|",
    ]
    for verdict in content["verdicts"]:
        cells = [f"{verdict['id']}: {verdict['text']}", verdict["tested"], _estimate(verdict), _seeds(verdict)]
        word = f"**{verdict['verdict']}**" if verdict["verdict"] in ("supported", "refuted") else verdict["verdict"]
        lines.append(f"| {' | '.join(cell.replace('|', '·') for cell in (*cells, word))} |")
    runs, machine = content["runs"], content["machine"]
    tasks = list(dict.fromkeys(f"`{run['task']}`" for run in runs))
    budgets = list(dict.fromkeys(str(run["budget"]) for run in runs))
    lines += [
        "",
        f"{', '.join(tasks)} at {', '.join(budgets)}, {max(run['seeds'] for run in runs)} seeds. "
        f"{_arms(runs, len(tasks) > 1, len(budgets) > 1)} "
        f"{machine['cores']} cores of {machine['processor']}; made by `{content['command']}`.",
    ]
    return "\n".join(lines)


def _arms(runs: Sequence[Mapping[str, Any]], with_task: bool, with_budget: bool) -> str:
    """Every arm's mean metric and its standard error, by task and budget where there are several."""
    places: dict[str, list[str]] = {}
    for run in runs:
        if run["value"] is not None:
            place = [f"`{run['task']}`"] * with_task + [f"at {run['budget']}"] * with_budget
            arm = f"`{run['arm']}` {run['value']:.4f} ± {run['se']:.4f}"
            places.setdefault(" ".join(["Arms", *place]), []).append(arm)
    return " ".join(f"{place}: {', '.join(arms)}." for place, arms in places.items())


def _estimate(verdict: Mapping[str, Any]) -> str:
    if verdict.get("estimate") is None:
        return "–"
    digits = "{:.3f}" if verdict["scale"] == "ratio" else "{:+.4f}"
    low, high = (_end(verdict[name], digits) for name in ("low", "high"))
    return f"{digits.format(verdict['estimate'])} [{low}, {high}]"


def _end(value: float | str | None, digits: str) -> str:
    return digits.format(value) if isinstance(value, int | float) and math.isfinite(value) else "–"


def _seeds(verdict: Mapping[str, Any]) -> str:
    return "×".join(map(str, dict.fromkeys(verdict.get("seeds") or ()))) or "–"


def scheduler_markdown(content: Mapping[str, Any]) -> str:
    """What a run costs beside itself, by engine and number of runs, and a line on the machine and the command.

    Args:
        content: what `benchmarks/scheduler.py --json` printed.
    """
    sizes = sorted({row["runs"] for row in content["rows"]})
    rows = {(row["engine"], row["runs"]): row for row in content["rows"]}
    head = [f"{size:,} runs" for size in sizes]
    lines = [
        f"| engine | {' | '.join(head)} | first and last tenth | until the first run |",
        f"|---|{'---:|' * len(sizes)}---:|---:|",
    ]
    for engine in dict.fromkeys(row["engine"] for row in content["rows"]):
        most = rows[engine, sizes[-1]]
        cells = [f"{rows[engine, size]['ms_per_run']:.1f} ms" for size in sizes]
        cells.append(f"{most['ms_first_tenth']:.1f} and {most['ms_last_tenth']:.1f} ms")
        lines.append(f"| `{engine}` | {' | '.join(cells)} | {most['start_seconds']:.1f} s |")
    machine, kilobytes = content["machine"], rows["store", sizes[-1]]["store_bytes_per_run"] / 1000
    lines += [
        "",
        f"Per run, {content['workers']} workers; first and last tenth of {sizes[-1]:,} runs. A run here writes 132 "
        f"rows, {kilobytes:.0f} kB. {machine['cores']} cores of {machine['processor']}, otherwise idle; made by "
        "`OMP_NUM_THREADS=1 python benchmarks/scheduler.py --postgres URL --json`.",
    ]
    return "\n".join(lines)
