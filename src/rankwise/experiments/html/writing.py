"""Write the report: one page, and every figure and table of it as a file."""

from pathlib import Path

from rankwise.experiments.html.inputs import ReportInput
from rankwise.experiments.html.page import build_page
from rankwise.experiments.redact import without_passwords
from rankwise.experiments.results import write_atomically
from rankwise.experiments.store import Store

PAGE = "report.html"
FIGURES = "figures"
TABLES = "tables"


def write_html(report: ReportInput, store: Store, output: Path) -> list[Path]:
    """Write `report.html`, `figures/*.png`, `figures/*.svg` and `tables/*.csv` into `output`; returns the paths.

    The page comes first in the list and holds all figures and tables itself: it can be sent alone. The same records
    give the same bytes.
    Files of an earlier report are replaced.

    Raises:
        OutputError: the folder cannot be written.
        StoreError: the store cannot be read.
    """
    page = build_page(report, store)
    found = [write_atomically(output / PAGE, page.html().encode())]
    for picture in page.pictures:
        found.append(write_atomically(output / FIGURES / f"{picture.name}.png", picture.png()))
        found.append(write_atomically(output / FIGURES / f"{picture.name}.svg", picture.svg()))
    for table in page.tables:
        text = without_passwords(table.csv().decode())
        found.append(write_atomically(output / TABLES / f"{table.name}.csv", text.encode()))
    return found
