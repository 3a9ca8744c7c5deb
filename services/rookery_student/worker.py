"""The student's worker: claims jobs, and has the process that owns the device train for them."""

from __future__ import annotations

from rookery_shared.jobs.isolation import Isolated
from rookery_shared.jobs.runner import JobRunner
from rookery_shared.jobs.worker import connect_runner
from rookery_student.settings import StudentSettings


def build_runner() -> JobRunner:
    """Called in the worker process."""
    settings = StudentSettings()  # type: ignore[call-arg]  # its fields come from the environment
    train = Isolated("rookery_student.training:build_handlers", stop_seconds=settings.stop_seconds)
    return connect_runner(settings, {"train": train})
