"""21. Somebody cancels a job: its training stops within a heartbeat, even if it is stuck in a step."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from rookery.client import Client
from rookery_coordinator.types import JobState
from tests.requirements.isolation import isolated_worker, job_row, process_of, runs
from tests.requirements.light import Light, start_light, until
from tests.requirements.removal import Removal
from tests.servers.redis import RedisServer

HEARTBEAT, STOP_SECONDS = 3.0, 0.5
SLACK = 3.0
"""What a busy machine may take."""

REMOVALS = [
    Removal(
        what="a process that does not stop is killed",
        file="shared/rookery_shared/jobs/isolation.py",
        old="            ends.append(self._stopped_at + stop_seconds)",
        new="            pass",
        test="test_a_stuck_job_is_stopped_with_its_process_and_its_neighbour_starts_over",
    ),
    Removal(
        what="neighbours are given back",
        file="shared/rookery_shared/jobs/isolation.py",
        old="        if self._process.killed:",
        new="        if False:",
        test="test_a_stuck_job_is_stopped_with_its_process_and_its_neighbour_starts_over",
    ),
]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Light]:
    """Its leases last longer than it may take to stop a job."""
    redis_server.wipe()
    folder = tmp_path_factory.mktemp("patient")
    with start_light(folder, redis_server.url, lease_seconds=3 * HEARTBEAT) as started:
        yield started


def cancel(light: Light, job: str) -> None:
    with Client(light.environment["ROOKERY_COORDINATOR_TARGET"]) as client:
        client.cancel_adaptation(job_row(light, job).parent)


def test_a_cancelled_job_stops_at_its_next_step(patient: Light) -> None:
    with isolated_worker(patient):
        [job] = patient.submit("60 seconds")
        until(lambda: patient.starts(job), seconds=60, what="it begins")
        cancel(patient, job)
        until(lambda: patient.journal("stopped"), seconds=HEARTBEAT + SLACK, what="it stops")
        assert patient.journal("stopped")[-1]["why"] == "Cancelled"
        assert runs(process_of(patient, job)), "its process is as good as before"
        assert patient.states([job]) == [JobState.CANCELLED]


def test_a_stuck_job_is_stopped_with_its_process_and_its_neighbour_starts_over(patient: Light) -> None:
    with isolated_worker(patient, slots=2, stop_seconds=STOP_SECONDS):
        stuck, neighbour = patient.submit("60 hangs", "1 seconds")
        until(lambda: patient.starts(stuck), seconds=60, what="it begins")
        process = process_of(patient, stuck)
        assert patient.states([neighbour]) != [JobState.SUCCEEDED]
        cancelled = time.monotonic()
        cancel(patient, stuck)
        until(lambda: not runs(process), seconds=60, what="the process has ended")
        assert time.monotonic() - cancelled < HEARTBEAT + STOP_SECONDS + SLACK
        patient.finish([neighbour], seconds=60)
        row = job_row(patient, neighbour)
        assert (row.epoch, row.attempts, row.deaths) == (2, 0, 0), "given back, which counts as no attempt"
        assert patient.states([stuck]) == [JobState.CANCELLED]
