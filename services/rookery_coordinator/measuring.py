"""What Prometheus is told of the database. Every server looks, so that it is told while no relay runs, too."""

from __future__ import annotations

from sqlalchemy import func, select

from rookery_coordinator.database import Database, now
from rookery_coordinator.tables import Job, Outbox
from rookery_coordinator.types import OPEN_JOB_STATES, JobKind, JobState
from rookery_shared.metrics import JOB_TRANSITIONS, JOBS, MEASURED, OUTBOX_AGE, OUTBOX_PENDING

ENDS = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Measuring:
    """Remembers which queues there were: one without jobs is told of as empty."""

    def __init__(self, database: Database) -> None:
        for end in ENDS:
            JOB_TRANSITIONS.labels(**{"from": JobState.RUNNING, "to": end})
        self._database = database
        self._seen: set[tuple[JobKind, str]] = set()
        """Kinds of jobs and their queues."""

    def measure(self) -> None:
        """How much is due, and how many jobs have not ended. Who cannot look says nothing: others may know better."""
        try:
            self._look()
        except Exception:
            JOBS.clear()
            OUTBOX_PENDING.set(0)
            OUTBOX_AGE.set(0)
            raise
        MEASURED.set_to_current_time()

    def _look(self) -> None:
        with self._database.read() as session:
            query = select(func.count(), now() - func.min(Outbox.not_before)).where(Outbox.not_before <= now())
            pending, age = session.execute(query).one()
            columns = (Job.kind, Job.queue, Job.state)
            open_jobs = select(*columns, func.count()).where(Job.state.in_(OPEN_JOB_STATES)).group_by(*columns)
            counts = {(kind, queue, state): n for kind, queue, state, n in session.execute(open_jobs)}
        self._seen |= {(kind, queue) for kind, queue, _ in counts}
        for kind, queue in self._seen:
            for state in OPEN_JOB_STATES:
                JOBS.labels(kind=kind, queue=queue, state=state).set(counts.get((kind, queue, state), 0))
        OUTBOX_PENDING.set(pending)
        OUTBOX_AGE.set(age or 0.0)
