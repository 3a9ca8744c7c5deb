"""What processes count: names of one form, and no label that takes as many values as there are jobs."""

from __future__ import annotations

import urllib3
from prometheus_client import REGISTRY

from rookery.local.ports import free_port
from rookery_shared import metrics
from rookery_shared.metrics import serve_metrics

LABELS = {"queue", "from", "to", "kind", "state", "purpose", "reward", "method", "code", "result", "reason"}
OURS = [value for value in vars(metrics).values() if hasattr(value, "_labelnames")]


def test_names_and_labels() -> None:
    for metric in OURS:
        assert metric._name.startswith("rookery_")
        assert {*metric._labelnames} <= LABELS


def test_all_are_registered_and_served() -> None:
    assert {metric._name for metric in OURS} <= {family.name for family in REGISTRY.collect()}
    port = free_port()
    serve_metrics(port)
    page = urllib3.request("GET", f"http://127.0.0.1:{port}/metrics").data.decode()
    assert "rookery_duplicate_delivery_total" in page
    serve_metrics(port)  # a port that is taken is warned of
