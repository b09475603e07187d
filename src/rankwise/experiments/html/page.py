"""The page: what it shows in which order, and what it says where something is missing."""

import base64
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

from rankwise.experiments.html import tables
from rankwise.experiments.html.cards import Card, card_of, word_counts
from rankwise.experiments.html.draw_costs import MEMORY, draw_costs, draw_measured
from rankwise.experiments.html.draw_curves import curves_of, draw_curves, draw_tuning
from rankwise.experiments.html.draw_forest import draw_forest
from rankwise.experiments.html.draw_metric import draw_metric
from rankwise.experiments.html.draw_ranks import draw_rank_maps
from rankwise.experiments.html.groups import Group, arms_of, differences, groups_of
from rankwise.experiments.html.inputs import ReportInput, reference_of
from rankwise.experiments.html.origins import Shared, configs, environment_table, environments
from rankwise.experiments.html.pictures import Picture
from rankwise.experiments.html.tables import Table
from rankwise.experiments.html.words import MEASURED, some
from rankwise.experiments.plan import MEASURES
from rankwise.experiments.redact import without_passwords
from rankwise.experiments.store import Store

if TYPE_CHECKING:
    from jinja2 import Template

STATES = ("completed", "running", "failed", "interrupted", "waiting")


@dataclass(frozen=True)
class Part:
    """A section: a sentence or two, figures, tables; `missing` says what is not there and why.

    `folded` tables are opened by the reader.
    """

    id: str
    title: str
    lead: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[Table, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report, not yet written."""

    report: ReportInput
    cards: tuple[Card, ...]
    verdicts: Table | None
    parts: tuple[Part, ...]
    environments: tuple[Shared, ...]
    configs: tuple[Shared, ...]

    @property
    def pictures(self) -> list[Picture]:
        """Every figure, cards' first."""
        own = [card.picture for card in self.cards if card.picture is not None]
        return own + [picture for part in self.parts for picture in part.pictures]

    @property
    def tables(self) -> list[Table]:
        """Every table."""
        own = [self.verdicts] if self.verdicts is not None else []
        return own + [table for part in self.parts for table in (*part.tables, *part.folded)]

    def html(self, *, live: str = "") -> str:
        """The page as one text that asks for nothing else; `live` is its version under a dashboard, which adds
        what keeps it up to date.
        """
        scripts = [_asset("sort.js"), *([_asset("live.js")] if live else [])]
        text = _template().render(
            page=self,
            report=self.report,
            states=progress(self.report),
            words=word_counts(self.report.verdicts),
            style=Markup(_asset("style.css")),
            scripts=[Markup(script) for script in scripts],
            policy=_policy(scripts, bool(live)),
            live=live,
        )
        return without_passwords(text)


def build_page(report: ReportInput, store: Store) -> Page:
    """Everything that the page shows, computed from the records and the store."""
    groups = groups_of(report.runs)
    arms = arms_of(groups)
    curves = curves_of(groups, store)
    recorded = any(run.record.environment for run in report.runs)
    found = differences(report, store)
    reference = reference_of(report)
    named = [name for name in MEASURED if any(verdict.claim.metric == name for verdict in report.verdicts)]
    paired = Part(
        "differences",
        "Paired differences",
        f"Every arm against {reference}, on the seeds that both ran with. These intervals are for looking; "
        f"{'the verdicts above decide.' if report.verdicts else 'nothing here was corrected for several comparisons.'}",
        tuple(draw_forest(found, arms)),
        (tables.difference_table(found),) if found else (),
        missing="" if found else f"Nothing to compare: no other arm shares a completed seed with '{reference}'.",
    )
    parts = [
        _metric(groups, arms, named),
        paired,
        _ranks(groups),
        Part(
            "learning",
            "Learning curves",
            "How the training loss fell.",
            tuple(draw_curves(curves, arms)),
            folded=(tables.curve_table(curves),) if curves else (),
            missing="" if curves else "The store holds no training losses of completed runs.",
        ),
        _costs(groups, arms, reference, named),
        _tuning(report, arms),
        Part(
            "runs",
            "Runs",
            "Every run of this report, whatever became of it.",
            folded=(tables.run_table(report),),
        ),
        Part(
            "environment",
            "Environment and configs",
            _environment_lead(report),
            folded=(environment_table(report.runs),) if recorded else (),
            missing="" if recorded else "No run recorded its environment.",
        ),
    ]
    if not report.verdicts:
        parts.insert(0, parts.pop(1))
    page = Page(
        report,
        tuple(card_of(verdict) for verdict in report.verdicts),
        tables.verdict_table(report.verdicts) if report.verdicts else None,
        tuple(parts),
        tuple(environments(report.runs)),
        tuple(configs(report.runs)),
    )
    return _unique_names(page)


def _metric(groups: list[Group], arms: list[str], named: list[str]) -> Part:
    measures = [name for name in named if name in MEASURES]
    return Part(
        "metric",
        "Metric against parameters",
        "What an arm reaches for how many adapter parameters; equal budgets stand side by side.",
        (*draw_measured(groups, arms, measures), *draw_metric(groups, arms)),
        (tables.summary_table(groups),) if groups else (),
        missing="" if groups else "No run is completed yet, so there is no metric to show.",
    )


def _ranks(groups: list[Group]) -> Part:
    ranked = [group for group in groups if any(record.rank_pattern for record in group.records)]
    without = [arm for arm in arms_of(groups) if arm not in arms_of(ranked)]
    return Part(
        "ranks",
        "Where the ranks went",
        "Layers are rows, matrices columns.",
        tuple(draw_rank_maps(ranked)),
        folded=(tables.rank_table(ranked),) if ranked else (),
        missing=f"No ranks were recorded for {', '.join(without)} (arms that train no low-rank adapter have none)."
        if without
        else "No completed run has ranks."
        if not ranked
        else "",
    )


def _costs(groups: list[Group], arms: list[str], reference: str, named: list[str]) -> Part:
    counted = [name for name in named if name not in MEASURES]
    found = tables.measured_table(groups)
    return Part(
        "costs",
        "Time and memory",
        "Times and memory depend on the machine and what else it did; ratios within a seed are the safer reading.",
        (*draw_costs(groups, arms), *draw_measured(groups, arms, counted)),
        (tables.cost_table(groups, reference),) if groups else (),
        (found,) if found.rows else (),
        missing="No run is completed yet, so there are no costs to show."
        if not groups
        else ""
        if any(MEMORY in record.costs for group in groups for record in group.records)
        else "No run says how much memory it took (runs of earlier versions, or a system that cannot tell): peak "
        "parameters stand for it here.",
    )


def _tuning(report: ReportInput, arms: list[str]) -> Part:
    tuned = {trial.arm for trial in report.tuning}
    untuned = [arm for arm in arms if arm not in tuned]
    missing = "No learning rate was searched: every arm ran with the settings in its config."
    if tuned:
        missing = f"Not tuned: {', '.join(untuned)}. Its settings are those of its config." if untuned else ""
    counts = sorted({sum(t.arm == arm for t in report.tuning) for arm in tuned})
    lead = "What the search of the learning rate found, per arm."
    if len(counts) > 1:
        lead += f" Arms had different numbers of trials ({', '.join(map(str, counts))}): the comparison favours more."
    return Part(
        "tuning",
        "Tuning",
        lead,
        tuple(draw_tuning(report.tuning, arms)),
        folded=(tables.tuning_table(report),) if tuned else (),
        missing=missing,
    )


def _environment_lead(report: ReportInput) -> str:
    kinds = {
        (str(r.record.environment.get("code")), str(r.record.environment.get("versions")))
        for r in report.runs
        if r.record.environment
    }
    if len(kinds) > 1:
        return f"Runs were made by {len(kinds)} different versions of Rankwise or its packages; see which below."
    return "What the runs were made with. Runs that differ only by seed share a config."


def progress(report: ReportInput) -> list[tuple[str, int]]:
    """How many runs are in which state, the states that occur; a run at several budgets counts once."""
    states = {run.record.run_id: run.record.status for run in report.runs}
    found = Counter([*states.values(), *("waiting" for _ in report.waiting)])
    return [(state, found[state]) for state in STATES if found[state]]


def summary_line(report: ReportInput) -> str:
    """`12 of 20 runs completed, 1 failed`."""
    counts = dict(progress(report))
    done, total = counts.pop("completed", 0), sum(n for _, n in progress(report))
    return ", ".join([f"{done} of {some(total, 'run')} completed", *(f"{n} {state}" for state, n in counts.items())])


def _unique_names(page: Page) -> Page:
    """Figures whose names came out the same (long ones are cut) get a number."""
    taken: set[str] = set()

    def own(picture: Picture | None) -> Picture | None:
        if picture is None:
            return None
        names = itertools.chain([picture.name], (f"{picture.name}-{turn}" for turn in itertools.count(2)))
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())  # file systems that do not tell upper from lower case would mix them up
        return picture if name == picture.name else replace(picture, name=name, drawn=[], texts=[])

    cards = tuple(replace(card, picture=own(card.picture)) for card in page.cards)
    parts = tuple(replace(part, pictures=tuple(filter(None, map(own, part.pictures)))) for part in page.parts)
    return replace(page, cards=cards, parts=parts)


@cache
def _asset(name: str) -> str:
    return files("rankwise.experiments.html").joinpath("templates", name).read_text(encoding="utf-8").strip()


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rankwise.experiments.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(inline=lambda picture: Markup(picture.inline()), summary_line=summary_line, some=some)
    return environment.get_template("page.html")


def _policy(scripts: Sequence[str], live: bool) -> str:
    """The page may load nothing and run no script but its own."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; img-src data:; base-uri 'none'; "
        f"form-action 'none'{'; connect-src ' + chr(39) + 'self' + chr(39) if live else ''}"
    )
