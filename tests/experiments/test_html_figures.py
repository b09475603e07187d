"""Figures of the page: what is computed for them, and that the inline form follows the page and carries no harm."""

import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from report_fixture import EVIL, plan, record_of

from rankwise.experiments.html.draw_claims import _window, draw_claim
from rankwise.experiments.html.draw_curves import band, draw_tuning, smooth
from rankwise.experiments.html.draw_metric import _once, draw_metric, pareto_front, side_by_side
from rankwise.experiments.html.draw_ranks import MOST, draw_rank_maps, mean_ranks
from rankwise.experiments.html.groups import groups_of
from rankwise.experiments.html.inputs import ReportRun, TuningRow
from rankwise.experiments.html.pictures import COLOURS, INK, Picture, legend, line, look, style
from rankwise.experiments.module_grid import module_grid
from rankwise.experiments.verdicts import verdicts

pytestmark = pytest.mark.figures


def test_pareto_front():
    points = [(1, 0.5), (1, 0.6), (2, 0.55), (3, 0.7), (4, 0.7)]
    assert pareto_front(points) == [1, 3]
    assert pareto_front(points, higher=False) == [0]


def test_points_that_cost_the_same_stand_beside_each_other():
    x = [5.0, 1.0, 1.0, 1.1, 5.2]
    placed = side_by_side(x, 0.5)
    order = np.argsort(placed)
    assert np.diff(np.array(placed)[order]).min() >= 0.5 - 1e-12
    assert list(order) == [1, 2, 3, 0, 4]
    assert np.mean([placed[i] for i in (1, 2, 3)]) == pytest.approx(np.mean([1.0, 1.0, 1.1]))
    assert side_by_side([1.0, 2.0, 3.0], 0.5) == [1.0, 2.0, 3.0]


def test_curves_are_smoothed_and_averaged_over_the_steps_that_all_seeds_have():
    assert smooth(np.array([1.0, 2.0, 3.0, 4.0]), 3) == pytest.approx([1.5, 2.0, 3.0, 3.5])
    steps = np.arange(1.0, 11.0)
    at, mean, spread = band({0: (steps, np.full(10, 1.0)), 1: (steps[:8], np.full(8, 3.0))})
    assert (at[0], at[-1]) == (1.0, 8.0)
    assert mean == pytest.approx(2.0)
    assert spread == pytest.approx(2**0.5)


def test_mean_ranks_by_layer_and_matrix():
    query = "encoder.layer.{}.attention.self.query"
    names = [query.format(0), query.format(1), "encoder.layer.1.output.dense"]
    values = mean_ranks(module_grid(names), [{names[0]: 4, names[1]: 2}, {names[0]: 2, names[2]: 8}])
    assert values[0].tolist()[0] == 3.0
    assert np.isnan(values[0, 1])
    assert values[1].tolist() == [1.0, 4.0]


def groups(**where):
    runs = [ReportRun(record_of(run), run.arm, run.budget) for run in plan().runs]
    return groups_of([run for run in runs if run.record.task == where.get("task", run.record.task)])


def test_full_fine_tuning_is_one_point_however_many_budgets_it_is_compared_at():
    kept = _once(groups(task="glue/rte"))
    assert [(g.arm, g.budget) for g in kept if g.arm == "full"] == [("full", "")]
    assert len(kept) == 7
    (picture,) = draw_metric(groups(task="glue/rte"), ["lora", "glora", "random", "full"])
    assert picture.alt.count("22.7M parameters") == 1
    assert "(n = 3 seeds)" in picture.alt


def test_many_rank_maps_are_averaged_over_tasks():
    found = groups()
    assert len(draw_rank_maps(found)) == 12 <= MOST
    maps = draw_rank_maps(found + groups_of_other_tasks())
    assert len(maps) == 6
    assert "and 4 tasks" in maps[0].caption


def test_arms_with_the_same_ranks_share_a_map():
    runs = [ReportRun(record_of(run), run.arm, run.budget) for run in plan().runs]
    runs += [replace(run, arm="same") for run in runs if run.arm == "lora"]
    own = groups_of([run for run in runs if run.record.task == "glue/rte" and run.budget == "r=4"])
    assert [picture.title.partition(" (")[0] for picture in draw_rank_maps(own)] == ["lora, same", "glora", "random"]


def test_no_two_arms_look_the_same_in_a_figure():
    arms = [f"arm{i}" for i in range(20)]
    assert len(set(look(arms).values())) == 20
    assert len({(look(arms)[arm][0], line(arms, arm)) for arm in arms}) == 20


def groups_of_other_tasks():
    runs = [ReportRun(record_of(run), run.arm, run.budget) for run in plan().runs]
    runs = [replace(run, record=replace(run.record, task=f"{run.record.task}2")) for run in runs]
    return groups_of(runs)


@pytest.fixture(scope="module")
def picture():
    def draw(figure):
        axes = figure.subplots()
        for index, colour in enumerate(COLOURS[:3]):
            axes.plot([0, 1], [index, 1], color=colour, label=f"{EVIL}--> $x {index}")
        axes.fill_between([0, 1], 0, 1, color=COLOURS[0], alpha=0.2)
        axes.set_ylabel(f"{EVIL} $\\alpha")
        style(axes)
        legend(axes)

    return Picture("p", f"a {EVIL} title", f'in "words" {EVIL}', "", 3.0, draw)


def test_inline_form_follows_the_page_and_holds_no_harm(picture):
    text = picture.inline()
    tree = ElementTree.fromstring(text)
    assert tree.attrib["role"] == "img"
    assert tree.attrib["aria-label"] == f'a {EVIL} title. in "words" {EVIL}'
    harmless = {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect"}
    assert {element.tag for element in tree.iter()} <= harmless
    assert any(EVIL in (element.text or "") for element in tree.iter())
    assert "<script" not in text
    assert "http" not in text
    colours = set(re.findall(r"#[0-9a-f]{6}\b", text))
    assert colours <= {"#ffffff"}, "only the page's colours, so that it is readable in dark"
    for variable in ("var(--c0)", "var(--c1)", "var(--grid)", "currentColor"):
        assert variable in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert ids
    assert len(ids) == len(set(ids))
    assert all(name.startswith("p-") for name in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_files_stand_alone(picture):
    svg, png = picture.svg(), picture.png()
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert INK.encode() in svg
    assert b"currentColor" not in svg
    assert struct.unpack(">II", png[16:24]) == (572, 390)  # 4.4 x 3 inches at 130 dots
    again = Picture("p", picture.title, picture.alt, "", 3.0, picture.draw)
    assert (again.png(), again.svg()) == (png, svg)


def test_claims_are_drawn_with_everything_in_view():
    planned = plan()
    records = {run.config.run_id: record_of(run) for run in planned.runs}
    found = verdicts(planned.config, planned.runs, records)
    drawn = {verdict.claim.id: draw_claim(verdict) for verdict in found}
    assert drawn["C5"] is None
    for verdict in found:
        if (result := verdict.result) is not None:
            low, high = _window(result, 1.0 if result.scale == "ratio" else 0.0)
            inside = [v for v in (result.low, result.high, result.above, result.below) if np.isfinite(v)]
            assert all(low < value < high for value in inside)
            assert "the claim holds between" in drawn[verdict.claim.id].alt
    assert drawn["C2"].inline().count("var(--claimed)") == 1


def test_tuning_shows_which_arms_were_searched_and_what_was_chosen():
    rows = [TuningRow("lora", "t", "r=4", rate, 0.5 + rate, rate == 0.01) for rate in (0.001, 0.01)]
    rows += [TuningRow("glora", "t", "r=4", 0.001, float("nan"), False)]
    failed = [replace(rows[0], task="none worked", value=math.nan)]
    (picture,) = draw_tuning([*rows, *failed], ["full", "lora", "glora"])
    assert picture.alt == "Chosen learning rates and numbers of trials: lora: 0.01 of 2."
    text = picture.inline()
    assert "lora" in text
    assert "full" not in text
    assert "var(--c1)" in text  # an arm has the same colour in all figures
    assert "var(--c0)" not in text
