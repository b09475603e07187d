"""What commands hand to the command line, and where they put things if nothing else is said."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

RUNS = Path("runs")
PLAN_FILE = "plan.yaml"


@dataclass(frozen=True)
class Shown:
    """What a command shows: tables with lines below them, and the same as JSON-ready data."""

    tables: "tuple[Table, ...]"
    lines: tuple[str, ...]
    content: dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """Text for people and data for machines; `failed` asks for exit code 2."""

    text: str
    data: Any
    failed: bool = False
