"""The page: what it says first, what it says where something is missing, and that nothing in it can do harm."""

import csv
import io
import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_fixture import EVIL, failed, fill, plan, record_of, report_of, save

from rankwise.experiments.html.cards import SYMBOLS, card_of
from rankwise.experiments.html.groups import differences, groups_of, half_width, higher_is_better
from rankwise.experiments.html.inputs import ReportInput, ReportRun, reference_of, runs_of_records
from rankwise.experiments.html.page import _asset, _unique_names, build_page, progress, summary_line
from rankwise.experiments.html.tables import SHOWN, Table, run_table
from rankwise.experiments.html.words import interval, measured, number, p_value, slug
from rankwise.experiments.html.writing import write_html
from rankwise.experiments.statistics import compare_arms
from rankwise.experiments.store import Store
from rankwise.tasks.base import MetricValue

pytestmark = pytest.mark.figures

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path", "rect"}
SECTIONS = ["differences", "metric", "ranks", "learning", "costs", "tuning", "runs", "environment"]


class Read(HTMLParser):
    """The elements of a page with their attributes, its text without styles and scripts, and what was not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plan's page without its drawings (these have tests of their own), its report and its store."""
    planned = plan()
    store = Store(tmp_path_factory.mktemp("html") / "store.sqlite")
    report = report_of(planned, fill(store, planned, leave=1))
    report = replace(report, runs=(*report.runs, ReportRun(failed(planned.runs[0]), "lora", "r=4")))
    page = build_page(report, store)
    yield planned, report, store, page, Read(undrawn(page).html())
    store.close()


def undrawn(page):
    cards = tuple(replace(card, picture=None) for card in page.cards)
    return replace(page, cards=cards, parts=tuple(replace(part, pictures=()) for part in page.parts))


def test_verdicts_come_first_and_every_word_has_a_symbol(made):
    _, report, _, page, read = made
    assert {verdict.word for verdict in report.verdicts} == set(SYMBOLS)
    sections = [attributes["id"] for attributes in read.of("section")]
    assert sections[0] == "verdicts"
    assert sorted(sections[1:]) == sorted(SECTIONS)
    for card in page.cards:
        assert f"{SYMBOLS[card.verdict.word]} {card.verdict.word} {card.verdict.claim.id}" in read.text
    assert len({card.kind for card in page.cards}) == 5
    for kind in {card.kind for card in page.cards}:
        assert f".{kind} {{ --tone:" in _asset("style.css")


def test_a_card_has_the_numbers_of_its_verdict(made):
    _, report, _, _, read = made
    for verdict in report.verdicts:
        if verdict.result is None:
            continue
        facts = dict(card_of(verdict).facts)
        ratio = verdict.result.scale == "ratio"
        assert facts["estimate"].startswith(number(verdict.result.estimate, sign=not ratio))
        ends = interval(verdict.result.low, verdict.result.high, sign=not ratio)
        assert ends in facts.get("90% interval", facts.get("range of the values"))
        assert f"{verdict.result.seeds[0]} paired seeds × {verdict.result.tasks} tasks" in facts["n"]
        if not math.isnan(verdict.adjusted):
            assert p_value(verdict.adjusted) in facts["p"]
        if verdict.result.evidence is not None and not ratio:
            assert f"± {number(verdict.result.evidence.se)} SE" in facts["estimate"]
        for text in facts.values():
            assert text in read.text
    open_claim = next(v for v in report.verdicts if v.word == "inconclusive")
    assert f"What would settle it: {open_claim.settle}" in read.text
    assert read.text.count("post hoc: made or changed") == 1
    assert "No numbers: 1 of 6 runs are missing." in read.text
    assert "Why: nobody was asked" in read.text
    assert all(run_id in read.text for verdict in report.verdicts for run_id in verdict.runs)


def test_nothing_is_asked_of_the_network_and_only_own_scripts_run(made):
    _, _, _, page, _ = made
    for live in ("", "1"):
        text = undrawn(page).html(live=live)
        read = Read(text)
        for tag, attributes in read.elements:
            for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                value = attributes.get(name, "")
                assert value.startswith(("#", "figures/", "tables/", "data:,")) or not value, (tag, value)
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "url(" not in _asset("style.css")
        assert "@import" not in _asset("style.css")
        assert "http" not in re.sub(r"http-equiv", "", _asset("style.css") + _asset("sort.js") + _asset("live.js"))
        policy = next(a["content"] for a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none';")
        assert len(read.of("script")) == policy.count("sha256-") == (2 if live else 1)
        assert ("connect-src" in policy) == bool(live)


def test_texts_of_users_stay_texts(made):
    _, _, _, page, read = made
    text = undrawn(page).html()
    assert EVIL not in text
    assert read.text.count(EVIL) >= 3  # a claim on its card and in the table, and a run's error
    assert "secret" not in text
    assert "postgresql://me:***@localhost/runs" in text


def test_the_page_is_sound_for_readers_of_all_kinds(made):
    *_, read = made
    assert read.open == []
    assert read.of("html") == [{"lang": "en"}]
    assert [len(read.of(tag)) for tag in ("main", "header", "nav", "footer", "h1", "title")] == [1] * 6
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in read.elements:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert next(a for a in read.of("a"))["class"] == "skip"
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    boxes = [a for a in read.of("div") if a.get("class") == "scroll"]
    assert len(boxes) == len(read.of("table"))
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)
    assert all(a["scope"] == "col" for a in read.of("th"))


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """As WCAG 2.2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_a_contrast_of_4_5_and_lines_of_3_in_light_and_dark():
    light, dark = re.findall(r":root \{(.*?)\}", _asset("style.css"), re.S)
    for scheme in (light, dark):
        colours = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{3,6})", scheme))
        for paper in ("--paper", "--box"):
            for name in ("--ink", "--quiet", "--link", "--yes", "--no", "--open", "--none", "--never"):
                assert contrast(colours[name], colours[paper]) >= 4.5, (name, paper)
            for name in ("--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--focus"):
                assert contrast(colours[name], colours[paper]) >= 3, (name, paper)
        assert contrast(colours["--ink"], colours["--claimed"]) >= 4.5


def test_without_claims_the_paired_comparison_comes_first(made):
    _, report, store, _, _ = made
    few = [run for run in report.runs if run.arm in ("lora", "glora") and run.budget == "r=4"]
    plain = ReportInput("a comparison", tuple(few))
    page = build_page(plain, store)
    read = Read(undrawn(page).html())
    assert [part.id for part in page.parts] == SECTIONS
    assert "No claims were made beforehand" in read.text
    assert "What the search" not in read.text or "No learning rate was searched" in read.text
    found = differences(plain, store)
    assert [(d.task, d.found.arm, d.found.reference, d.found.n) for d in found] == [
        ("glue/rte", "glora", "lora", 3),
        ("glue/cola", "glora", "lora", 3),
    ]
    sides = [[r.record for r in few if r.arm == arm and r.record.task == "glue/rte"][:3] for arm in ("glora", "lora")]
    predictions = {r.run_id: store.predictions(r.run_id, "validation") for side in sides for r in side}
    assert found[0].found == compare_arms(*sides, predictions, "accuracy")


def test_what_is_missing_is_said(made):
    planned, *_ = made
    nothing = build_page(ReportInput("nothing yet", (), waiting=("a", "b")), made[2])
    read = Read(nothing.html())
    for sentence in (
        "0 of 2 runs completed, 2 waiting",
        "No run is completed yet, so there is no metric to show.",
        "no other arm shares a completed seed",
        "No completed run has ranks.",
        "The store holds no training losses of completed runs.",
        "No run is completed yet, so there are no costs to show.",
        "No learning rate was searched",
        "No run recorded its environment.",
    ):
        assert sentence in read.text
    assert next(part for part in nothing.parts if part.id == "environment").folded == ()
    parts = {part.id: part for part in made[3].parts}
    assert "Not tuned: full." in parts["tuning"].missing
    assert "No ranks were recorded for full" in parts["ranks"].missing
    assert parts["costs"].missing == ""
    assert planned.config.arms.keys() == {"lora", "glora", "random", "full"}


def test_memory_is_drawn_where_runs_say_it(made):
    _, report, store, page, _ = made
    (part,) = [part for part in page.parts if part.id == "costs"]
    drawn = {picture.name: picture.alt for picture in part.pictures if picture.name.startswith("memory-")}
    assert drawn.keys() == {"memory-glue-rte", "memory-glue-cola"}
    assert "lora r=4: 901 MiB (n = 3 runs)" in drawn["memory-glue-rte"]
    assert "glora r=8: 911 MiB (n = 3 runs)" in drawn["memory-glue-rte"]
    told = {picture.name.split("-")[0]: picture.caption for picture in part.pictures}
    assert told["memory"].endswith("The table “Counted when training was done” has the numbers.")
    assert "peak_memory_bytes" in {row[3] for row in part.folded[0].rows}
    assert told["time"].endswith("The table below has the numbers.")
    runs = tuple(replace(run, record=replace(run.record, costs={})) for run in report.runs)
    (bare,) = [part for part in build_page(replace(report, runs=runs), store).parts if part.id == "costs"]
    assert not any(picture.name.startswith("memory-") for picture in bare.pictures)
    assert "No run says how much memory it took" in bare.missing


def test_what_claims_are_about_is_drawn_and_what_was_counted_is_in_a_table(made):
    """`premise` and other numbers that are no metrics of the task: a claim's card alone would be all there is."""
    planned, report, store, page, _ = made
    runs = tuple(
        replace(run, record=replace(run.record, costs={"premise": 0.1 * run.record.seed - 0.1, "total_rank": 144.0}))
        for run in report.runs
    )
    verdict = replace(report.verdicts[0], claim=planned.config.claims[0].model_copy(update={"metric": "premise"}))
    parts = {p.id: p for p in build_page(replace(report, runs=runs, verdicts=(verdict,)), store).parts}
    first = parts["metric"].pictures[0]
    assert first.name == "premise-glue-rte"
    assert "glora r=4: 0.0000 (n = 3 runs)" in first.alt
    assert first.inline().startswith("<svg")
    (counted,) = parts["costs"].folded
    assert ("glue/rte", "r=4", "glora", "premise", pytest.approx(0.0), pytest.approx(0.1 / 3**0.5), 3) in counted.rows
    assert not any("rank" in picture.name for picture in parts["costs"].pictures)  # no claim is about it
    assert "premise" not in " ".join(picture.name for part in page.parts for picture in part.pictures)


def test_runs_without_predictions_are_compared_over_seeds_and_it_is_said(tmp_path):
    planned = plan()
    chosen = [run for run in planned.runs if run.arm in ("lora", "glora") and run.budget == "r=4"]
    chosen = [run for run in chosen if run.config.task.name == "glue/rte"]
    with Store(tmp_path / "store.sqlite") as store:
        for run in chosen:
            save(store, record_of(run), curves=False, predictions=False)
        report = ReportInput("r", tuple(ReportRun(record_of(run), run.arm, run.budget) for run in chosen))
        (found,) = differences(report, store)
        one = replace(report, runs=report.runs[:2])
        (alone,) = differences(one, store)
    each = [record_of(run).metrics["accuracy"].value for run in chosen]
    gains = [each[i] - each[i - 1] for i in (1, 3, 5)]
    assert found.found.difference == pytest.approx(sum(gains) / 3)
    assert "seeds only" in found.found.note
    assert found.found.low < found.found.difference < found.found.high
    assert math.isinf(alone.found.low)
    assert "no interval" in alone.found.note


def test_runs_are_counted_once_and_by_state(made):
    planned, report, *_ = made
    assert dict(progress(report)) == {"completed": 41, "failed": 1, "waiting": 1}
    assert summary_line(report) == "41 of 43 runs completed, 1 failed, 1 waiting"
    rows = run_table(report).rows
    assert len(rows) == 43
    full = next(row for row in rows if row[1] == "full")
    assert full[4] == "r=4, r=8"  # it has no budget of its own and is compared at both
    assert rows[-1][0] in report.waiting
    assert [row[-1] for row in rows if row[6] == "failed"] == [f"TrainingError: diverged {EVIL}"]
    assert len(planned.runs) == 48


def test_tables_as_csv_are_whole_and_harmless():
    rows = [("=1+1", 1, 0.1, None), ('a,b\n"c"', -2, math.nan, 3)] + [("x", i, 0.5, i) for i in range(SHOWN)]
    table = Table("t", "T", ("a", "b", "c", "d"), rows)
    back = list(csv.reader(io.StringIO(table.csv().decode())))
    assert back[:3] == [["a", "b", "c", "d"], ["'=1+1", "1", "0.1", ""], ['a,b\n"c"', "-2", "", "3"]]
    assert len(back) == SHOWN + 3
    assert (len(table.shown), table.left) == (SHOWN, 2)
    assert table.shown[0][1:3] == [("1", "1", True), ("0.1000", "0.1", True)]


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (number(0.12345, sign=True), "+0.1235"),
        (number(-0.00001), "0.0000"),
        (number(-0.5), "−0.5000"),
        (number(math.nan), "–"),
        (interval(-math.inf, math.inf), "[−∞, ∞]"),
        (p_value(0.00001), "< 0.0001"),
        (measured(0.5, 0.1, 1), "0.5000 ± 0.1000 (n = 1 seed)"),
        (slug("glue/rte ../x"), "glue-rte-..-x"),
    ],
)
def test_numbers_are_written_as_people_read_them(got, wanted):
    assert got == wanted


def test_reference_and_groups():
    planned = plan()
    records = [record_of(run) for run in planned.runs if run.config.seed == 0]
    runs = runs_of_records([*records, replace(records[0], run_id="x", status="failed")])
    assert {run.budget for run in runs if run.arm == "full"} == {"r=4", "r=8"}
    assert reference_of(ReportInput("r", runs)) == "lora"
    assert reference_of(ReportInput("r", tuple(run for run in runs if run.arm != "lora"))) == "glora"
    assert reference_of(ReportInput("r", runs, reference="full")) == "full"
    assert all(len(group.records) == 1 for group in groups_of(runs))
    assert higher_is_better("accuracy_mismatched")
    assert not higher_is_better("loss")
    assert half_width(MetricValue(0.5, 0.1, 3)) == pytest.approx(4.302653 * 0.1)
    assert half_width(MetricValue(0.5, 0.1, 1)) == pytest.approx(1.959964 * 0.1)


def few(store, arms=("lora", "glora"), seeds=(0, 1)):
    """A small comparison of one task."""
    planned = plan()
    runs = [r for r in planned.runs if (r.config.task.name, r.budget) == ("glue/rte", "r=4")]
    runs = [r for r in runs if r.arm in arms and r.config.seed in seeds]
    for run in runs:
        save(store, record_of(run))
    return ReportInput("few", tuple(ReportRun(record_of(run), run.arm, run.budget) for run in runs))


def test_the_same_store_gives_the_same_bytes(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        report = few(store, seeds=(0,))
        one, other = (write_html(report, store, tmp_path / name) for name in ("a", "b"))
    assert one[0] == tmp_path / "a/report.html"
    assert [p.relative_to(tmp_path / "a") for p in one] == [p.relative_to(tmp_path / "b") for p in other]
    assert {p.suffix for p in one} == {".html", ".png", ".svg", ".csv"}
    for a, b in zip(one, other, strict=True):
        assert a.read_bytes() == b.read_bytes(), a
    read = Read(one[0].read_text())
    links = {a["href"] for a in read.of("a") if not a["href"].startswith("#")}
    assert links == {p.relative_to(tmp_path / "a").as_posix() for p in one[1:]}
    assert len(read.of("figure")) == sum(p.suffix == ".png" for p in one) > 5


def test_figures_have_names_of_their_own(made):
    """Names are cut and cleaned, so those of different tasks may come out the same."""
    picture = made[3].pictures[0]
    pictures = tuple(replace(picture, name=name) for name in ("a", "A", "a-2", "a"))
    parts = (replace(made[3].parts[0], pictures=pictures),)
    found = _unique_names(replace(made[3], cards=(), parts=parts))
    assert [each.name for each in found.pictures] == ["a", "A-2", "a-2-2", "a-3"]


@pytest.mark.slow
def test_a_comparison_is_reported_where_torch_is_not_installed(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        ids = [run.record.run_id for run in few(store).runs]
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers', 'peft', 'datasets'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from pathlib import Path\n"
        "from rankwise.experiments.report import write_report\n"
        "from rankwise.experiments.store import Store\n"
        "folder = Path(sys.argv[1])\n"
        "with Store(folder / 'store.sqlite') as store:\n"
        "    print(*write_report(store, sys.argv[2:], folder, command='c').files)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *ids], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "report.html") in done.stdout.split()
    assert "4 of 4 runs completed" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_whole_plan_is_written(made, tmp_path):
    _, report, store, page, _ = made
    found = write_html(report, store, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in found}
    assert {f"figures/{picture.name}.{kind}" for picture in page.pictures for kind in ("png", "svg")} <= names
    read = Read(found[0].read_text())
    drawings = [a for a in read.of("svg") if a.get("role") == "img"]
    assert len(drawings) == len(page.pictures) > 25
    assert all(len(a["aria-label"]) > 20 for a in drawings)
    assert not any("secret" in path.read_text() for path in found if path.suffix != ".png")
