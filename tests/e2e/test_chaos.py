"""A few runs under fire, on each broker. `make chaos` does hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import BrokerName, Options, chaos
from tests.prerequisites import lacking
from tests.servers.rabbitmq import has_rabbitmq

RUNS = 5


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "broker", [pytest.param(name, marks=pytest.mark.xdist_group(f"chaos-{name}")) for name in ("redis", "rabbitmq")]
)
def test_no_promise_is_broken(broker: BrokerName, tmp_path: Path) -> None:
    if broker == "rabbitmq" and not has_rabbitmq():
        lacking("RabbitMQ (apt-get install rabbitmq-server)")
    options = Options(
        seed=1, runs=RUNS, broker=broker, at_once=RUNS, pace=15.0, zeal=2.0, lease=15.0, log=tmp_path / "log"
    )
    assert chaos(options, tmp_path / "system") == []
