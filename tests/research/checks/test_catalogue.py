"""The table of known defects: every number is found on the record that has it, and none on a repaired one."""

import os
from functools import cache
from pathlib import Path

import pytest
from research.checks.judged import REPAIRED, numbers, repaired

from rankwise.research.checks import RULES, check_record
from rankwise.research.checks.catalogue import items, markdown, rules_for

ROOT = Path(__file__).parents[3]
EXAMPLES = os.environ.get("RANKWISE_EXAMPLES", "")
RECORDS = {
    "000": [*range(1, 32)],
    "001": [*range(32, 52)],
    "002": [*range(52, 84)],
    "004": [*range(84, 90)],
}
needs_records = pytest.mark.skipif(not EXAMPLES, reason="RANKWISE_EXAMPLES does not name the folder of example records")
NAMED = {
    "claim_coverage": {32, 33, 81},
    "budget_arith": {1, 2, 4, 5, 35, 65},
    "step_arith": {6, 34, 37, 38},
    "in_space": {34},
    "path_resolve": {40},
    "numeric_yaml": {41, 49},
    "frozen_factors": {36},
    "metric_exists": {43, 64},
    "task_metric": {19},
    "split_policy": {45},
    "seeds_mde": {16, 18, 62},
    "timing_same_device": {48},
    "tuning_parity": {20, 39, 61},
    "flops_bound": {54, 58, 64, 71},
    "param_bound": {42, 70, 3},
    "expectation_consistency": {66},
    "static_smoke": {14, *range(24, 32), 55, 57, *range(72, 77)},
    "ste_grad_check": {56, 77},
    "rank_alloc": {11},
    "dedupe_studies": {83},
    "parse_tolerant": {63},
    "dataset_identity": {47},
    "compute_estimate": {46},
}
"""Rules that were asked for by name, with their numbers."""


@cache
def found_in(record: str):
    from rankwise.research.records import read_record

    (path,) = sorted(Path(EXAMPLES).glob(f"{record}_*.txt"))
    return check_record(read_record(path))


@needs_records
@pytest.mark.parametrize(("record", "number"), [(name, n) for name, own in RECORDS.items() for n in own])
def test_every_known_defect_is_found_on_its_record(record, number):
    assert number in numbers(found_in(record))


@needs_records
@pytest.mark.parametrize("record", RECORDS)
def test_every_defect_says_where_and_under_which_rule(record):
    names = {rule.name for rule in RULES}
    for one in found_in(record):
        assert one.rule in names
        assert one.where, one
        assert len(one.message) > 20


@pytest.mark.parametrize("kind", REPAIRED)
def test_a_repaired_record_has_none(kind):
    assert [f"{one.rule} {one.items} {one.where}: {one.message}" for one in check_record(repaired(kind))] == []


def test_every_number_has_a_rule_and_every_rule_a_sentence():
    assert [item.number for item in items()] == list(range(1, 90))
    for item in items():
        assert rules_for(item.number), item
        assert item.wrong.endswith("."), item
    for rule in RULES:
        assert rule.summary.endswith("."), rule


@pytest.mark.parametrize("name", NAMED)
def test_rules_that_were_asked_for_raise_their_numbers(name):
    can = {item for rule in RULES if rule.name == name for item in rule.items}
    assert NAMED[name] <= can


def test_the_page_is_current():
    path = ROOT / "docs/defects.md"
    if os.environ.get("RANKWISE_UPDATE_DOCS"):
        path.write_text(markdown(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == markdown()
