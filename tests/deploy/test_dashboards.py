"""Dashboards and alerts: every metric that they name is exported, with the labels and values that they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.dashboards.dashboards import FOLDER, written
from rookery_coordinator.types import JobKind, JobState
from rookery_shared import metrics

ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in ALERTS for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "rookery.json").read_text())
OF_PROMETHEUS = {"le", "pod"}
"""Labels that Prometheus puts there, by the chart's PodMonitor."""
VALUES = {
    "kind": {kind.value for kind in JobKind},
    "state": {state.value for state in JobState},
    "to": {state.value for state in JobState},
}


def exported() -> dict[str, set[str]]:
    """The labels of each series, by its name, as Prometheus is told of them when something has happened."""
    registry = CollectorRegistry()
    for metric in [metric for metric in vars(metrics).values() if isinstance(metric, Counter | Gauge | Histogram)]:
        options: Any = {"buckets": metric._upper_bounds} if isinstance(metric, Histogram) else {}
        same = type(metric)(metric._name, metric._documentation, metric._labelnames, registry=registry, **options)
        series = same.labels(*metric._labelnames) if metric._labelnames else same
        series.observe(0.5) if isinstance(series, Histogram) else series.inc()
    told = text_string_to_metric_families(generate_latest(registry).decode())
    samples = [sample for family in told for sample in family.samples]
    return {sample.name: {*sample.labels} - {"le"} for sample in samples if not sample.name.endswith("_created")}


SERIES = exported()


def queries() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("title", "query"), [*queries()])
def test_what_is_asked_for_is_exported(title: str, query: str) -> None:
    asked = re.findall(r"\b(rookery_\w+)(?:\{([^}]*)\})?", query)
    assert asked
    labels = {*OF_PROMETHEUS}
    for name, selector in asked:
        assert name in SERIES, name
        labels |= SERIES[name]
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            assert label in SERIES[name], label
            if label in VALUES:
                assert {*values.split("|")} <= VALUES[label]
    for grouped in re.findall(r"(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in grouped.split(",")} <= labels
    assert query.count("(") == query.count(")")


def test_every_metric_is_shown_or_watched() -> None:
    """What nobody looks at needs not be counted."""
    asked = " ".join(query for _, query in queries())
    unseen = {name for name in SERIES if not name.endswith(("_sum", "_count")) and name not in asked}
    assert {name for name in unseen if name.removesuffix("_bucket") not in asked} == set()


def test_the_dashboard_is_written_anew() -> None:
    assert (FOLDER / "rookery.json").read_text() == written(), "run `python deploy/dashboards/dashboards.py`"


def test_legends_and_texts_use_labels_that_are_left() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            grouped = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
            assert {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])} <= grouped, panel["title"]
    for rule in RULES:
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in group.split(", ")}
        assert {*re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])} <= grouped, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["description"]


def test_panels_fit_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len({*cells}) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
