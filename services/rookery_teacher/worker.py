"""The worker of the teacher's trainer: claims jobs, and has the process that owns the device train for them."""

from __future__ import annotations

from rookery_shared.jobs.isolation import Isolated
from rookery_shared.jobs.runner import JobRunner
from rookery_shared.jobs.worker import connect_runner
from rookery_teacher.settings import TeacherSettings


def build_runner() -> JobRunner:
    """Called in the worker process."""
    settings = TeacherSettings()  # type: ignore[call-arg]  # its fields come from the environment
    improve = Isolated("rookery_teacher.trainer:build_handlers", stop_seconds=settings.stop_seconds)
    return connect_runner(settings, {"improve": improve})
