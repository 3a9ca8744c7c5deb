"""Writes the Grafana dashboard beside it: `python deploy/dashboards/dashboards.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 24, 8
"""Of a row, and of each panel, in Grafana's units."""
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    queries: dict[str, str]
    """PromQL by legend."""
    unit: str = "short"
    description: str = ""


def quantiles(metric: str, by: str, *shares: float) -> dict[str, str]:
    buckets = f"sum by (le, {by}) (rate({metric}_bucket{RATE}))"
    return {f"{{{{{by}}}}} p{share * 100:.0f}": f"histogram_quantile({share}, {buckets})" for share in shares}


ROWS: dict[str, Sequence[Panel]] = {
    "Work": [
        Panel(
            title="Jobs that have not ended",
            queries={"{{kind}} {{queue}} {{state}}": "max by (kind, queue, state) (rookery_jobs) > 0"},
            description="Counted in SQL; each coordinator tells the same.",
        ),
        Panel(
            title="Jobs that ended",
            queries={
                "{{to}}": 'sum by (to) (rate(rookery_job_transitions_total{to=~"succeeded|failed|cancelled"}'
                + RATE
                + "))"
            },
            unit="ops",
        ),
        Panel(
            title="From claim to result",
            queries=quantiles("rookery_job_duration_seconds", "kind", 0.5, 0.95),
            unit="s",
        ),
        Panel(
            title="Rounds, from first job to end",
            queries=quantiles("rookery_round_duration_seconds", "purpose", 0.5, 0.95),
            unit="s",
        ),
    ],
    "What it is worth": [
        Panel(
            title="Scores of trials with their adapters",
            queries=quantiles("rookery_reward", "reward", 0.25, 0.5, 0.75),
        ),
        Panel(
            title="Trials scored",
            queries={"{{reward}}": f"sum by (reward) (rate(rookery_reward_count{RATE}))"},
            unit="ops",
        ),
    ],
    "Delivery": [
        Panel(
            title="Messages not yet sent",
            queries={"due": "max(rookery_outbox_pending)"},
        ),
        Panel(
            title="Oldest message that is due",
            queries={
                "age": "max(rookery_outbox_age_seconds)",
                "since somebody looked": "time() - max(rookery_measured_timestamp_seconds > 0)",
            },
            unit="s",
        ),
        Panel(
            title="Lost and found",
            queries={
                "leases expired": f"sum(rate(rookery_lease_expired_total{RATE}))",
                "announced again": f"sum(rate(rookery_forgotten_job_total{RATE}))",
                "duplicates dropped": f"sum(rate(rookery_duplicate_delivery_total{RATE}))",
                "late results refused": f"sum(rate(rookery_late_result_total{RATE}))",
                "stale writes refused": f"sum(rate(rookery_fenced_write_total{RATE}))",
                "strange messages": f"sum(rate(rookery_message_refused_total{RATE}))",
            },
            unit="ops",
        ),
    ],
    "Adapters": [
        Panel(
            title="Published",
            queries={"{{result}}": f"sum by (result) (rate(rookery_adapter_publish_total{RATE}))"},
            unit="ops",
        ),
        Panel(
            title="Refused when read",
            queries={"{{reason}}": f"sum by (reason) (rate(rookery_adapter_refused_total{RATE}))"},
            unit="ops",
        ),
        Panel(
            title="Until an adapter is here",
            queries=quantiles("rookery_adapter_load_lag_seconds", "pod", 0.5, 0.95),
            unit="s",
        ),
    ],
    "Calls": [
        Panel(
            title="Answered, by status",
            queries={"{{code}}": f"sum by (code) (rate(rookery_call_duration_seconds_count{RATE}))"},
            unit="reqps",
        ),
        Panel(
            title="Slowest hundredth",
            queries=quantiles("rookery_call_duration_seconds", "method", 0.99),
            unit="s",
        ),
        Panel(
            title="Refused for want of room",
            queries={"refused": f"sum(rate(rookery_call_refused_total{RATE}))"},
            unit="reqps",
        ),
    ],
}


def panels() -> Iterator[dict[str, Any]]:
    top = 0
    for title, row in ROWS.items():
        yield {"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}, "panels": []}
        width = WIDTH // len(row)
        for position, panel in enumerate(row):
            yield {
                "type": "timeseries",
                "title": panel.title,
                "description": panel.description,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": position * width, "y": top + 1, "w": width, "h": HEIGHT},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0 if panel.unit != "short" else None}},
                "targets": [
                    {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
                    for i, (legend, query) in enumerate(panel.queries.items())
                ],
            }
        top += 1 + HEIGHT


def dashboard() -> dict[str, Any]:
    return {
        "title": "Rookery",
        "uid": "rookery",
        "tags": ["rookery"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [{"id": id_, **panel} for id_, panel in enumerate(panels(), start=1)],
    }


def written() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    (FOLDER / "rookery.json").write_text(written())
