"""Removes what attempts at jobs have left in the store, once the jobs have ended.

A worker clears up behind itself when its job ends in its hands. This is for all others: it died, or lost its lease, or
somebody cancelled the job while nobody had it.
"""

from __future__ import annotations

from sqlalchemy import select

from rookery_coordinator.database import Database
from rookery_coordinator.tables import Job
from rookery_coordinator.types import OPEN_JOB_STATES
from rookery_shared.log import get_logger
from rookery_shared.store.base import UNFINISHED, ObjectStore


class Leftovers:
    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database, self._store = database, store

    def sweep(self) -> None:
        """Jobs that the database does not know are left alone: the store may be another coordinator's too."""
        jobs = {key.removeprefix(UNFINISHED).partition("/")[0] for key in self._store.keys(UNFINISHED)}
        if not jobs:
            return
        with self._database.read() as session:
            ended = session.scalars(select(Job.id).where(Job.id.in_(jobs), Job.state.not_in(OPEN_JOB_STATES))).all()
        for job in ended:
            for key in [*self._store.keys(f"{UNFINISHED}{job}/")]:
                self._store.remove(key)
            get_logger().info("removed what was left of a job", job=job)
