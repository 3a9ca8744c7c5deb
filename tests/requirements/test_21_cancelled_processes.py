"""21. Somebody cancels a job: its training stops within a heartbeat, even if it is stuck in a step."""

from __future__ import annotations

import time

from rookery.client import Client
from rookery_coordinator.types import JobState
from tests.requirements.conftest import LIGHT
from tests.requirements.isolation import isolated_worker, job_row, noted, process_of, runs
from tests.requirements.light import Light
from tests.requirements.removal import Removal
from tests.waiting import wait_until

HEARTBEAT, STOP_SECONDS = LIGHT["lease_seconds"] / 3, 0.5
SLACK = 4.0
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


def cancel(light: Light, job: str) -> None:
    with Client(light.environment["ROOKERY_COORDINATOR_TARGET"]) as client:
        client.cancel_adaptation(job_row(light, job).parent)


def test_a_cancelled_job_stops_at_its_next_step(tidy_light: Light) -> None:
    with isolated_worker(tidy_light):
        [job] = tidy_light.submit("60 seconds")
        wait_until(lambda: tidy_light.starts(job), seconds=60, what="it begins")
        cancel(tidy_light, job)
        wait_until(lambda: noted(tidy_light, job, "stopped"), seconds=HEARTBEAT + SLACK, what="it stops")
        assert noted(tidy_light, job, "stopped")[-1]["why"] == "Cancelled"
        assert runs(process_of(tidy_light, job)), "its process is as good as before"
        assert tidy_light.states([job]) == [JobState.CANCELLED]


def test_a_stuck_job_is_stopped_with_its_process_and_its_neighbour_starts_over(tidy_light: Light) -> None:
    with isolated_worker(tidy_light, slots=2, stop_seconds=STOP_SECONDS):
        stuck, neighbour = tidy_light.submit("60 hangs", "1 seconds")
        wait_until(lambda: tidy_light.starts(stuck), seconds=60, what="it begins")
        process = process_of(tidy_light, stuck)
        assert tidy_light.states([neighbour]) != [JobState.SUCCEEDED]
        cancelled = time.monotonic()
        cancel(tidy_light, stuck)
        wait_until(lambda: not runs(process), seconds=60, what="the process has ended")
        assert time.monotonic() - cancelled < HEARTBEAT + STOP_SECONDS + SLACK
        tidy_light.finish([neighbour], seconds=60)
        row = job_row(tidy_light, neighbour)
        assert (row.epoch, row.attempts, row.deaths) == (2, 0, 0), "given back, which counts as no attempt"
        assert tidy_light.states([stuck]) == [JobState.CANCELLED]
