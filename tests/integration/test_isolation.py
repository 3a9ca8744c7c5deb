"""A process for jobs outlives what it has not been given yet."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared.errors import StaleEpoch
from rookery_shared.jobs.isolation import Isolated
from rookery_shared.jobs.lease import KeptLease, Lease
from rookery_shared.jobs.runner import Handler

STARTS = "TEST_ISOLATION_STARTS"
START_SECONDS = 3.0


def build_handlers() -> Mapping[str, Handler]:
    """In the process, which takes its time as one that loads a model."""
    with Path(os.environ[STARTS]).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    time.sleep(START_SECONDS)
    return {"train": _train}


def _train(claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
    return pb.CompleteRequest(trained=pb.Trained())


def kept_lease(job: str, seconds: float) -> KeptLease:
    """One that nobody extends."""
    jobs: Any = None
    return KeptLease(jobs, job=job, epoch=1, seconds=seconds, since=time.monotonic())


def test_a_lease_that_ends_while_the_process_starts_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STARTS, str(tmp_path / "starts"))
    isolated = Isolated(f"{__name__}:build_handlers", stop_seconds=1.0)
    claim = pb.ClaimResponse(train=pb.TrainWork())
    with pytest.raises(StaleEpoch):
        isolated(claim, kept_lease("lost", 1.0))
    assert isolated(claim, kept_lease("kept", 60.0)).HasField("trained")
    assert len((tmp_path / "starts").read_text().split()) == 1
