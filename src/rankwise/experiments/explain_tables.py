"""What `rankwise explain` prints: tables from the data of `explain_data.described`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankwise.experiments.adapter_plots import grid_table
from rankwise.experiments.explain_data import LEVEL
from rankwise.experiments.module_grid import place_of

if TYPE_CHECKING:
    from rich.table import Table

MOST_CLASSES = 6
"""Classes that get a column in a table."""
MOST_MODULES = 12
"""Modules that are listed one by one."""
WIDTH = 60
"""Characters of a text that are shown."""
BAR = 40
"""Characters of the longest bar."""

Data = Mapping[str, Any]


def tables(data: Data) -> "tuple[Table, ...]":
    """All of them, in the order they are printed."""
    found = [open_table(data), family_table(data), module_table(data), rank_histogram(data), third_table(data)]
    return (*found, example_table(data))


def summary_lines(data: Data) -> list[str]:
    """What it comes to, in sentences."""
    what = data["kind"]
    of = data["examples_in_split"]
    part = f" of {of:,}" if of != data["examples"] else ""
    telling = [name for name, module in data["modules"].items() if module["p"] <= LEVEL]
    varying = data["sometimes_open"]
    lines = [
        f"{data['peft_type']} on {data['task']}, {data['split']}, {data['examples']:,}{part} examples: {_shares(data)}",
        f"{what}: {data['never_open']} never open, {data['always_open']} always, {varying} for some examples",
        f"{len(telling)} of {len(data['modules'])} {what} say something about the class beyond chance (p ≤ {LEVEL:g} "
        f"over all of them, {data['permutations']} permutations)",
    ]
    if (cache := data["cache"]) is not None:
        lines.append(
            f"remembered decisions: {cache['hits']:,} of {cache['lookups']:,} examples had come before "
            f"({cache['rate']:.1%}); at most {cache['size']:,} are remembered"
        )
    if len({third["third"] for third in data["thirds"]}) > 1:
        lines.append("thirds are observed, not caused: hard examples may be the ones that are adapted most")
    return lines


def open_table(data: Data) -> "Table":
    """Layers by kinds of matrix: percent of examples that open each."""
    shares = {name: 100 * module["open"] for name, module in data["modules"].items()}
    return grid_table(shares, f"% of examples that open each {data['kind'].removesuffix('s')}", 100.0)


def family_table(data: Data) -> "Table":
    """Kinds of matrix: how many, and how often they are open, by class."""
    classes = _classes(data)
    kinds: dict[str, list[Data]] = {}
    for name, module in data["modules"].items():
        kinds.setdefault(place_of(name).kind, []).append(module)
    table = _table("% open by kind and class", ("kind",), (data["kind"], "all", *classes))
    for kind, members in [*kinds.items(), ("all", list(data["modules"].values()))]:
        shares = [_mean([module["open_by_class"][label] for module in members]) for label in classes]
        everywhere = _mean([module["open"] for module in members])
        table.add_row(kind, str(len(members)), *(f"{100 * share:.1f}" for share in (everywhere, *shares)))
    return table


def module_table(data: Data) -> "Table":
    """The modules whose decision says most about the class."""
    classes = _classes(data)
    ordered = sorted(data["modules"].items(), key=lambda item: (item[1]["p"], -item[1]["bits"]))
    shown = [(name, module) for name, module in ordered if 0 < module["open"] < 1 or module["bits"] > 0][:MOST_MODULES]
    title = f"what a decision says about the class, in bits ({len(shown)} of {len(ordered)} {data['kind']})"
    numbers = ("rank", "mean used", "% open", *classes, "bits", "by chance", "p")
    table = _table(title, (data["kind"].removesuffix("s"),), numbers)
    for name, module in shown:
        shares = [module["open_by_class"][label] for label in classes]
        table.add_row(
            name,
            str(module["rank"]),
            f"{module['mean_rank']:.2f}",
            *(f"{100 * share:.1f}" for share in (module["open"], *shares)),
            *(f"{module[key]:.4f}" for key in ("bits", "bits_by_chance")),
            f"{module['p']:.3f}{' *' if module['p'] <= LEVEL else ''}",
        )
    return table


def rank_histogram(data: Data) -> "Table":
    """How many decisions used which rank."""
    counts = {int(rank): count for rank, count in data["ranks_used"].items()}
    total, top = sum(counts.values()), max(counts.values())
    title, what = "decisions per rank used (0: closed)", "rank"
    if data["kind"] == "blocks":
        title, what = "decisions (0: skipped, 1: run)", "run"
    table = _table(title, (), (what, "decisions", "%"))
    table.add_column("", no_wrap=True)
    for rank, count in sorted(counts.items()):
        table.add_row(str(rank), f"{count:,}", f"{100 * count / total:.1f}", "█" * max(1, round(BAR * count / top)))
    return table


def third_table(data: Data) -> "Table":
    """How good predictions are for little and much adapted examples."""
    metric = data["thirds"][0]["metric"]
    table = _table(f"{metric} by how much is adapted", ("examples with",), (_amount(data), "examples", metric, "±"))
    for third in data["thirds"]:
        low, high = third["total_rank"]["from"], third["total_rank"]["to"]
        span = str(low) if low == high else f"{low} to {high}"
        error = "–" if third["se"] is None else f"{third['se']:.4f}"
        table.add_row(third["third"], span, f"{third['examples']:,}", f"{third['value']:.4f}", error)
    return table


def example_table(data: Data) -> "Table":
    """The most and the least adapted examples."""
    from rich.text import Text  # a "[b]" in a text is a "[b]"

    table = _table("most and least adapted examples", ("", "text", "label", "prediction"), ("open", _amount(data)))
    count = len(data["modules"])
    for title, key in (("most", "most_adapted"), ("least", "least_adapted")):
        for row in data[key]:
            texts = [row["text"], *([row["text_pair"]] if "text_pair" in row else [])]
            text = " | ".join(shortened(text, WIDTH // len(texts)) for text in texts)
            said = [value if isinstance(value, str) else f"{value:.4g}" for value in (row["label"], row["prediction"])]
            table.add_row(title, *map(Text, (text, *said)), f"{row['open']}/{count}", str(row["total_rank"]))
            title = ""
    return table


def _shares(data: Data) -> str:
    if data["kind"] == "blocks":
        return f"{data['share_open']:.1%} of the blocks that can be skipped are run"
    return f"{data['share_open']:.1%} of the decisions are open, {data['share_of_rank']:.1%} of the rank is used"


def _amount(data: Data) -> str:
    """What is summed over modules, or blocks."""
    return "blocks run" if data["kind"] == "blocks" else "total rank"


def shortened(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _classes(data: Data) -> list[str]:
    """Those that get a column: the ones with most examples."""
    ordered = sorted(data["classes"], key=lambda name: -data["classes"][name]["examples"])[:MOST_CLASSES]
    return [name for name in data["classes"] if name in ordered]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for word in words:
        table.add_column(Text(word), no_wrap=True)
    for number in numbers:
        table.add_column(Text(number), justify="right")
    return table
