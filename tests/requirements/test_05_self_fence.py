"""5. A worker that cannot reach the coordinator stops its training before its lease ends, by the database's clock."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select

from rookery_coordinator.database import now
from tests.requirements.isolation import isolated_worker, job_row, process_of, runs, steps
from tests.requirements.light import Light, until
from tests.requirements.removal import Removal

REMOVALS = [
    Removal(
        what="a process that does not stop is killed before the lease ends",
        file="shared/rookery_shared/jobs/isolation.py",
        old="        ends = [self._lease.until]",
        new="        ends = [self._lease.until + 60.0]",
        test="test_training_has_stopped_before_the_lease_ends[hangs first]",
    ),
]


@contextmanager
def silent_coordinator(own_light: Light) -> Iterator[None]:
    """It takes calls and does not answer."""
    os.kill(own_light.coordinator.server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(own_light.coordinator.server.pid, signal.SIGCONT)


def database_now(own_light: Light) -> float:
    with own_light.database.read() as session:
        return session.scalars(select(now())).one()


@pytest.mark.parametrize("how", ["seconds", "hangs first"])
def test_training_has_stopped_before_the_lease_ends(own_light: Light, how: str) -> None:
    """Whether it takes steps or is stuck in one. Then somebody else may have the job, and finishes it."""
    with isolated_worker(own_light, stop_seconds=60.0):
        [job] = own_light.submit(f"4 {how}")
        until(lambda: own_light.starts(job), seconds=60, what="it begins")
        process = process_of(own_light, job)
        with silent_coordinator(own_light):
            lease_until = job_row(own_light, job).lease_until
            assert lease_until is not None
            until(
                lambda: not runs(process) or any(entry["job"] == job for entry in own_light.journal("stopped")),
                seconds=10,
                what="it stops",
            )
            assert database_now(own_light) < lease_until
            stopped = time.time()
        own_light.finish([job], seconds=60)
        assert not steps(own_light, job, epoch=1, after=stopped)
        assert own_light.starts(job) == 2
