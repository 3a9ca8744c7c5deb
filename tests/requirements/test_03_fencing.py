"""3. A worker that stood still past its lease finds the job another's: nothing that it does counts, and it stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from rookery.errors import CallFailed
from rookery.internal.v1 import job_service_pb2 as pb
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.transport import call, open_channel
from rookery_coordinator.tables import Job
from tests.requirements.conftest import LIGHT
from tests.requirements.isolation import isolated_worker, noted, process_of, runs
from tests.requirements.light import Light, Process
from tests.requirements.removal import Removal
from tests.waiting import wait_until

REMOVALS = [
    Removal(
        what="writes are of the epoch that runs",
        file="services/rookery_coordinator/leases.py",
        old="    if job.epoch != epoch or job.state is not JobState.RUNNING:",
        new="    if job.state is not JobState.RUNNING:",
        test="test_no_call_of_an_older_epoch_changes_anything[complete]",
    ),
    Removal(
        what="training stops by itself if its worker says nothing",
        file="shared/rookery_shared/jobs/lease.py",
        old="        if time.monotonic() >= self.until:",
        new="        if False:",
        test="test_training_stops_by_itself_if_its_worker_stands_still",
    ),
]


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # the one that was woken first may end the next at once
                os.kill(pid, signal.SIGCONT)


def claimed(light: Light, job: str, worker: Process) -> int:
    """Waits until the worker's process has begun with the job. Returns the process."""
    wait_until(lambda: light.starts(job), seconds=60, what="the first worker begins")
    pid = process_of(light, job)
    assert pid != worker.server.pid
    return pid


def test_a_worker_that_slept_past_its_lease_changes_nothing_and_stops(tidy_light: Light) -> None:
    with isolated_worker(tidy_light) as sleeper:
        [job] = tidy_light.submit("2 seconds")
        process = claimed(tidy_light, job, sleeper)
        with stopped(sleeper.server.pid, process):
            with isolated_worker(tidy_light):
                tidy_light.finish([job], seconds=60)
            before = row(tidy_light, job)
        woken = time.time()
        wait_until(lambda: not runs(process) or noted(tidy_light, job, "stopped"), seconds=5, what="it stops")
        assert len(noted(tidy_light, job, "step", after=woken)) <= 1, "it was in the middle of one"
        assert row(tidy_light, job) == before
        assert tidy_light.epochs([job]) == [2]
        tidy_light.finish(tidy_light.submit("0 seconds"), seconds=60)  # it is as good as before


def test_training_stops_by_itself_if_its_worker_stands_still(tidy_light: Light) -> None:
    with isolated_worker(tidy_light) as sleeper:
        [job] = tidy_light.submit("20 seconds")
        claimed(tidy_light, job, sleeper)
        with stopped(sleeper.server.pid):
            now = time.time()
            wait_until(
                lambda: noted(tidy_light, job, "stopped"),
                seconds=LIGHT["lease_seconds"] + 2.0,
                what="it stops",
            )
            [entry] = noted(tidy_light, job, "stopped")
            assert entry["why"] == "StaleEpoch"
            assert entry["time"] < now + LIGHT["lease_seconds"]


@pytest.mark.parametrize("kind", ["heartbeat", "complete", "fail", "release", "claim"])
def test_no_call_of_an_older_epoch_changes_anything(tidy_light: Light, kind: str) -> None:
    """While the job runs under the next one."""
    [job] = tidy_light.submit("0 seconds")
    with open_channel(tidy_light.environment["ROOKERY_JOB_SERVICE_TARGET"]) as channel:
        stub = JobServiceStub(channel)
        call(stub.Claim, pb.ClaimRequest(job=job, epoch=1, worker="old"))
        call(stub.Release, pb.ReleaseRequest(job=job, epoch=1))
        call(stub.Claim, pb.ClaimRequest(job=job, epoch=2, worker="new"))
        before = row(tidy_light, job)
        late: dict[str, tuple[Any, Any]] = {
            "heartbeat": (stub.Heartbeat, pb.HeartbeatRequest(job=job, epoch=1)),
            "complete": (stub.Complete, pb.CompleteRequest(job=job, epoch=1, activated=pb.Activated())),
            "fail": (stub.Fail, pb.FailRequest(job=job, epoch=1, reason="R", retryable=True)),
            "release": (stub.Release, pb.ReleaseRequest(job=job, epoch=1)),
            "claim": (stub.Claim, pb.ClaimRequest(job=job, epoch=1, worker="old")),
        }
        method, request = late[kind]
        with pytest.raises(CallFailed) as refused:
            call(method, request)
        assert refused.value.reason == "STALE_EPOCH"
        assert row(tidy_light, job) == before


def row(light: Light, job: str) -> dict[str, object]:
    with light.database.read() as session:
        kept = session.get_one(Job, job)
        return {column.name: getattr(kept, column.name) for column in Job.__table__.columns}
