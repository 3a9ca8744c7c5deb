"""Finds work whose owner is gone: leases that ran out, messages that were lost. Any number may run."""

from __future__ import annotations

from rookery_coordinator import leases, outcomes
from rookery_coordinator.database import Database
from rookery_shared.errors import DatabaseUnavailable
from rookery_shared.faults import Point, fault_point
from rookery_shared.log import get_logger


class Reaper:
    """Queues abandoned jobs again."""

    def __init__(self, database: Database, *, forgotten_seconds: float) -> None:
        self._database = database
        self._forgotten_seconds = forgotten_seconds

    def sweep(self) -> None:
        with self._database.read() as session:
            expired = leases.expired(session)
        for job in expired:
            try:
                with self._database.write() as session:
                    fault_point(Point.REAPING)
                    outcomes.abandon(session, job)
            except DatabaseUnavailable:
                raise
            except Exception:  # the others are seen to all the same
                get_logger().exception("cannot end the attempt of a lost worker", job=job)
        fault_point(Point.REAPED)
        with self._database.write() as session:
            announced = leases.announce_forgotten(session, after_seconds=self._forgotten_seconds)
        if announced:
            get_logger().warning("announced forgotten jobs again", jobs=announced)
