"""`rookery-student`: a Celery worker on the queue of its profile."""

from __future__ import annotations

import argparse

from rookery_shared import telemetry
from rookery_shared.jobs.device import require_device
from rookery_shared.jobs.queues import train_queue
from rookery_shared.jobs.worker import run_worker
from rookery_shared.store.probing import open_store
from rookery_student.settings import StudentSettings


def main() -> None:
    argparse.ArgumentParser(prog="rookery-student", description="Trains adapters of one student profile.").parse_args()
    settings = StudentSettings()  # type: ignore[call-arg]  # its fields come from the environment
    telemetry.configure(settings, service="student")
    require_device(settings.device)
    open_store(settings, writes=True)
    run_worker(
        settings,
        service="student",
        queues=(train_queue(settings.profile),),
        runner="rookery_student.worker:build_runner",
        concurrency=settings.jobs_at_once,
    )


if __name__ == "__main__":
    main()
