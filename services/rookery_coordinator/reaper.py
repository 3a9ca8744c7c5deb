"""Finds work whose owner is gone: leases that ran out, messages that were lost."""

from __future__ import annotations

from rookery_coordinator import leases, outcomes
from rookery_coordinator.database import Database
from rookery_coordinator.types import Failure
from rookery_shared.faults import Point, fault_point
from rookery_shared.log import get_logger


class Reaper:
    """Queues abandoned jobs again."""

    def __init__(self, database: Database, *, forgotten_seconds: float) -> None:
        self._database = database
        self._forgotten_seconds = forgotten_seconds

    def sweep(self) -> None:
        with self._database.write() as session:
            for job in leases.expired(session):
                get_logger().warning("lease ran out", job=job.id, epoch=job.epoch, worker=job.worker, parent=job.parent)
                lost = Failure(
                    reason="WORKER_LOST", message=f"{job.worker} stopped answering; it was attempt {job.attempts + 1}"
                )
                fault_point(Point.REAPING)
                outcomes.retry_or_fail(session, job, lost)
        fault_point(Point.REAPED)
        with self._database.write() as session:
            announced = leases.announce_forgotten(session, after_seconds=self._forgotten_seconds)
        if announced:
            get_logger().warning("announced forgotten jobs again", jobs=announced)
