"""A worker without a model: the real process on a real broker. A job sleeps for as long as its context's title says.

Everything but the handler is the product's. What it does is written to a file, a line of JSON for each start and end.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery.signals import celeryd_after_setup
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared.jobs import consuming, queues
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import JobRunner
from rookery_shared.jobs.worker import connect_runner, run_worker
from rookery_shared.settings import ServiceSettings


class LightSettings(ServiceSettings):
    """ROOKERY_LIGHT_... beside those of every service."""

    model_config = SettingsConfigDict(env_prefix="ROOKERY_", extra="ignore")

    light_journal: Path
    light_queues: list[str] = Field(default=["generate"])
    light_slots: int = 1
    light_options: dict[str, Any] = Field(default={})
    """Of the broker, in place of some of ours: what takes minutes in production takes seconds in a test."""
    light_acks_late: bool = False
    """As it must not be: the broker delivers a job again while it runs."""
    light_stuck_seconds: float = consuming.STUCK_SECONDS


class Sleeper:
    """Writes self-edits in its sleep."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal

    def generate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        title = claim.generate.items[0].context.title
        self._note("started", title, lease)
        until = time.monotonic() + float(title.split()[0])
        while time.monotonic() < until:
            lease.progress(0, 1)
            time.sleep(0.05)
        result = pb.CompleteRequest()
        for item in claim.generate.items:
            written = [pb.Generated.SelfEdit(prompt="p", text=f"t{seed}", seed=seed, draws=1) for seed in item.seeds]
            result.generated.items.add(self_edits=written)
        self._note("ended", title, lease)
        return result

    def _note(self, what: str, title: str, lease: Lease) -> None:
        line = {"what": what, "title": title, "job": lease.job, "epoch": lease.epoch, "pid": os.getpid()}
        with self._journal.open("a") as file:
            file.write(json.dumps({**line, "time": time.time()}) + "\n")


def build_runner() -> JobRunner:
    settings = LightSettings()  # type: ignore[call-arg]  # its fields come from the environment
    return connect_runner(settings, {"generate": Sleeper(settings.light_journal).generate})


def _ack_late(*, instance: Any, **_: Any) -> None:
    instance.app.tasks[queues.TASK].acks_late = True


def main() -> None:
    settings = LightSettings()  # type: ignore[call-arg]  # its fields come from the environment
    for options in (queues.REDIS_OPTIONS, queues.RABBITMQ_OPTIONS):
        options.update(settings.light_options)
    consuming.STUCK_SECONDS = settings.light_stuck_seconds
    consuming.BEAT_SECONDS = settings.light_stuck_seconds / 10
    if settings.light_acks_late:
        celeryd_after_setup.connect(_ack_late)
    signal.signal(signal.SIGUSR2, lambda *_: time.sleep(3600))  # the event loop is in this thread
    run_worker(
        settings,
        service="light",
        queues=tuple(settings.light_queues),
        runner="tests.requirements.light_worker:build_runner",
        concurrency=settings.light_slots,
    )


if __name__ == "__main__":
    main()
