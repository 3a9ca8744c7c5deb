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
def silent_coordinator(patient_light: Light) -> Iterator[None]:
    """It takes calls and does not answer."""
    os.kill(patient_light.coordinator.server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(patient_light.coordinator.server.pid, signal.SIGCONT)


def database_now(patient_light: Light) -> float:
    with patient_light.database.read() as session:
        return session.scalars(select(now())).one()


@pytest.mark.parametrize("how", ["seconds", "hangs first"])
def test_training_has_stopped_before_the_lease_ends(patient_light: Light, how: str) -> None:
    """Whether it takes steps or is stuck in one. Then somebody else may have the job, and finishes it."""
    with isolated_worker(patient_light, stop_seconds=60.0):
        [job] = patient_light.submit(f"4 {how}")
        until(lambda: patient_light.starts(job), seconds=60, what="it begins")
        process = process_of(patient_light, job)
        with silent_coordinator(patient_light):
            lease_until = job_row(patient_light, job).lease_until
            assert lease_until is not None
            until(
                lambda: not runs(process) or any(entry["job"] == job for entry in patient_light.journal("stopped")),
                seconds=10,
                what="it stops",
            )
            assert database_now(patient_light) < lease_until
            stopped = time.time()
        patient_light.finish([job], seconds=60)
        assert not steps(patient_light, job, epoch=1, after=stopped)
        assert patient_light.starts(job) == 2
