"""What `make quickstart` must show. Reads the report of the last one; CI runs it before the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.prerequisites import ROOT, lacking

REPORT = ROOT / "rookery-data" / "report.json"
ROWS = ["base", "passage only", "self-edits before RL", "after round 1", "after round 2"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if not REPORT.exists():
        lacking("the report of a quickstart (run `make quickstart`)")
    content: dict[str, Any] = json.loads(REPORT.read_text())
    return content


def test_every_row_is_above_the_one_before(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    assert {*rows} == {*ROWS, "control"}
    means = [rows[name]["mean"] for name in ROWS]
    assert means == sorted(means)
    assert len(set(means)) == len(means)
    assert all(row["stderr"] > 0 and row["n"] >= 48 for row in rows.values())


def test_reinforcement_learning_gains_ten_points_and_its_control_does_not(report: dict[str, Any]) -> None:
    compared = {c["second"]: c for c in report["comparisons"] if c["first"] == "self-edits before RL"}
    last, control = compared["after round 2"], compared["control"]
    assert last["mean_difference"] >= 0.10
    assert last["p_value"] < 0.01
    assert not (control["mean_difference"] >= 0.10 and control["p_value"] < 0.01)


def test_it_takes_at_most_six_minutes(report: dict[str, Any]) -> None:
    assert report["seconds"] <= 360


def test_the_plot_is_a_picture() -> None:
    picture = REPORT.with_name("report.svg")
    if not picture.exists():
        lacking("the plot of a quickstart")
    assert Path(picture).read_text().count("<svg") == 1
