"""Light workers that have a process of their own do their jobs, and what is known of those processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rookery_coordinator.tables import Job
from tests.requirements.light import Light, Process


@contextmanager
def isolated_worker(light: Light, *, slots: int = 1, **settings: Any) -> Iterator[Process]:
    worker = light.start_worker(slots=slots, module="tests.requirements.isolated_worker", **settings)
    try:
        yield worker
    finally:
        worker.server.end(signal.SIGKILL)


def process_of(light: Light, job: str) -> int:
    """That began last with the job."""
    return int([entry["pid"] for entry in light.journal() if entry["job"] == job][-1])


def runs(pid: int) -> bool:
    """Zombies do not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def noted(light: Light, job: str, what: str, *, epoch: int = 1, after: float = 0.0) -> list[dict[str, Any]]:
    """What an attempt at a job has said of itself, after a time."""
    return [
        entry
        for entry in light.journal(what)
        if entry["job"] == job and entry["epoch"] == epoch and entry["time"] > after
    ]


def job_row(light: Light, job: str) -> Job:
    with light.database.read() as session:
        return session.get_one(Job, job)
