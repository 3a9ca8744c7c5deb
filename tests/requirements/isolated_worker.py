"""A light worker that has a process of its own do its jobs, as those have that train.

A job does for some seconds what its context's title says: "3 seconds" takes steps, "1 kills" then kills its process,
"9 hangs" has the whole process stand still, "2 hangs first" does so at its first attempt only, "0 calls" then makes
calls of its own, "0 counts" counts an adapter.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.transport import call, open_channel
from rookery_shared import log
from rookery_shared.jobs.isolation import Isolated
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import Handler, JobRunner
from rookery_shared.jobs.worker import connect_runner, run_worker
from rookery_shared.metrics import ADAPTER_LOAD_LAG, ADAPTER_PUBLISHES, note
from tests.requirements.light_worker import LightSettings

CALLS = 500
STEP_SECONDS = 0.05


class IsolatedSettings(LightSettings):
    light_stop_seconds: float = 5.0


def build_runner() -> JobRunner:
    settings = IsolatedSettings()  # type: ignore[call-arg]  # its fields come from the environment
    handlers = "tests.requirements.isolated_worker:build_handlers"
    return connect_runner(settings, {"generate": Isolated(handlers, stop_seconds=settings.light_stop_seconds)})


def build_handlers() -> Mapping[str, Handler]:
    settings = IsolatedSettings()  # type: ignore[call-arg]  # its fields come from the environment
    log.configure(service="isolated", level=settings.log_level, style=settings.log_format)
    return {"generate": Doer(settings.light_journal, settings.coordinator_target).generate}


class Doer:
    """Does as titles say."""

    def __init__(self, journal: Path, coordinator: str) -> None:
        self._journal, self._coordinator = journal, coordinator

    def generate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        seconds, what, *when = claim.generate.items[0].context.title.split()
        self._note("started", lease)
        hangs = what == "hangs" and (lease.epoch == 1 or when != ["first"])
        try:
            self._pass(float(seconds), lease, hangs=hangs)
        except Exception as stopped:
            self._note("stopped", lease, why=type(stopped).__name__)
            raise
        if what == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "counts":
            note(ADAPTER_PUBLISHES, result="published")
            note(ADAPTER_LOAD_LAG, 0.25)
            log.get_logger().info("counted")
        if what == "calls":
            self._note("called", lease, calls=self._call())
        items = [
            pb.Generated.Item(
                self_edits=[
                    pb.Generated.SelfEdit(prompt="p", text=f"t{seed}", seed=seed, draws=1) for seed in item.seeds
                ]
            )
            for item in claim.generate.items
        ]
        self._note("ended", lease)
        return pb.CompleteRequest(generated=pb.Generated(items=items))

    def _pass(self, seconds: float, lease: Lease, *, hangs: bool) -> None:
        if hangs:
            ctypes.PyDLL(None).sleep(int(seconds))  # as a driver's call does that keeps Python's lock
        for _ in range(int(seconds / STEP_SECONDS)):  # work is not done by standing still for as long
            lease.progress(0, 1)
            self._note("step", lease)
            time.sleep(STEP_SECONDS)

    def _call(self) -> int:
        """How many calls were answered."""
        with open_channel(self._coordinator) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answers = [call(stub.Check, health_pb2.HealthCheckRequest()) for _ in range(CALLS)]
        return sum(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers)

    def _note(self, what: str, lease: Lease, **more: Any) -> None:
        line = {"what": what, "job": lease.job, "epoch": lease.epoch, "pid": os.getpid(), "time": time.time(), **more}
        with self._journal.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    settings = IsolatedSettings()  # type: ignore[call-arg]  # its fields come from the environment
    run_worker(
        settings,
        service="isolated",
        queues=tuple(settings.light_queues),
        runner="tests.requirements.isolated_worker:build_runner",
        concurrency=settings.light_slots,
    )


if __name__ == "__main__":
    main()
