"""The one Celery task. Imported by worker processes only."""

from __future__ import annotations

import threading

from celery import Task, current_app, shared_task
from celery.utils.imports import symbol_by_name

from rookery.tracing import TRACEPARENT
from rookery_shared.jobs.queues import TASK
from rookery_shared.jobs.runner import JobRunner

_lock = threading.Lock()
_runner: JobRunner | None = None


def process_runner() -> JobRunner:
    """This process's runner, built when it is first asked for."""
    global _runner  # noqa: PLW0603  # one a process, and Celery has no other place for it
    with _lock:
        if _runner is None:
            _runner = symbol_by_name(current_app.conf["rookery_runner"])()
        return _runner


@shared_task(name=TASK, ignore_result=True, bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def run_job(task: Task, *, job: str, epoch: int) -> None:
    trace = (task.request.headers or {}).get(TRACEPARENT)
    process_runner().run(job, epoch, trace=trace if isinstance(trace, str) else "")
