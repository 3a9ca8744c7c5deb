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
from tests.requirements.isolation import isolated_worker, job_row, noted, process_of, runs
from tests.requirements.light import Light
from tests.requirements.removal import Removal
from tests.waiting import wait_until

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
def silent_coordinator(light: Light) -> Iterator[None]:
    """It takes calls and does not answer."""
    os.kill(light.coordinator.server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(light.coordinator.server.pid, signal.SIGCONT)


def database_now(light: Light) -> float:
    with light.database.read() as session:
        return session.scalars(select(now())).one()


@pytest.mark.parametrize("how", ["seconds", "hangs first"])
def test_training_has_stopped_before_the_lease_ends(tidy_light: Light, how: str) -> None:
    """Whether it takes steps or is stuck in one. Then somebody else may have the job, and finishes it."""
    with isolated_worker(tidy_light, stop_seconds=60.0):
        [job] = tidy_light.submit(f"12 {how}")
        wait_until(lambda: tidy_light.starts(job), seconds=60, what="it begins")
        process = process_of(tidy_light, job)
        with silent_coordinator(tidy_light):
            lease_until = job_row(tidy_light, job).lease_until
            assert lease_until is not None
            wait_until(
                lambda: not runs(process) or noted(tidy_light, job, "stopped"),
                seconds=20,
                what="it stops",
            )
            assert database_now(tidy_light) < lease_until
            stopped = time.time()
        tidy_light.finish([job], seconds=60)
        assert not noted(tidy_light, job, "step", after=stopped)
        assert tidy_light.starts(job) == 2
