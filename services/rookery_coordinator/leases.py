"""The life of a job: queued, claimed under a lease, ended. Nothing here knows what a job does.

Each attempt has an epoch. A message names the epoch that it announces; a claim takes it; every later call must name it.
An attempt that fails or whose lease runs out is queued again under the next epoch, so that whatever the old owner still
sends has no effect. So is a job that its worker gives back, but that does not count as an attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from rookery_coordinator.database import now
from rookery_coordinator.identifiers import new_id
from rookery_coordinator.tables import Job, Outbox
from rookery_coordinator.types import OPEN_JOB_STATES, Failure, JobKind, JobState
from rookery_shared.errors import JobNotQueued, StaleEpoch, UnknownResource

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Pause before each further attempt. A job that fails once more after the last has failed."""
MAX_DEATHS = 3
"""Attempts that may take the process down that they run in. A job that does it as often has failed."""
SUSPICIOUS_ATTEMPTS = 3
"""A job that has failed as often, for whatever reason, runs alone, as one does that took its process down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    kind: JobKind
    queue: str
    parent: str
    round: str | None
    scope: Sequence[str] = ()


def enqueue(session: Session, new: NewJob) -> Job:
    """A job and the message that announces it, in one transaction."""
    job = Job(
        id=new_id(),
        kind=new.kind,
        queue=new.queue,
        parent=new.parent,
        round=new.round,
        scope=list(new.scope),
        state=JobState.QUEUED,
        epoch=1,
        attempts=0,
        deaths=0,
        done=0,
        total=len(new.scope),
    )
    session.add(job)
    _announce(session, job, delay=0.0)
    return job


def _announce(session: Session, job: Job, *, delay: float) -> None:
    session.add(Outbox(job=job.id, epoch=job.epoch, queue=job.queue, not_before=now() + delay))


def _locked(session: Session, job_id: str) -> Job:
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    if job is None:
        raise UnknownResource(f"there is no job {job_id}", name=job_id)
    return job


def claim(session: Session, job_id: str, *, epoch: int, worker: str, lease_seconds: float) -> Job:
    """Take a queued job. The same worker may repeat its claim, in case the answer was lost.

    Raises JobNotQueued if somebody else has it or it has ended, StaleEpoch if the message is of an older attempt.
    """
    job = _locked(session, job_id)
    if job.epoch != epoch:
        raise StaleEpoch(f"job {job_id} is at epoch {job.epoch}, not {epoch}", job=job_id)
    if job.state is not JobState.QUEUED and not (job.state is JobState.RUNNING and job.worker == worker):
        raise JobNotQueued(f"job {job_id} is {job.state.value}", job=job_id)
    job.state = JobState.RUNNING
    job.worker = worker
    job.lease_until = now() + lease_seconds
    job.start_time = now()
    return job


def heartbeat(session: Session, job_id: str, *, epoch: int, lease_seconds: float, done: int, total: int) -> bool:
    """Extend a lease. Returns whether the job was cancelled. Raises StaleEpoch if it has another owner or has ended."""
    changed = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.epoch == epoch, Job.state == JobState.RUNNING)
        .values(lease_until=now() + lease_seconds, done=done, total=total)
    )
    if changed.rowcount:  # type: ignore[attr-defined]  # an UPDATE's result has a row count
        return False
    job = _locked(session, job_id)
    if job.epoch == epoch and job.state is JobState.CANCELLED:
        return True
    raise StaleEpoch(f"job {job_id} is {job.state.value} at epoch {job.epoch}", job=job_id)


def own(session: Session, job_id: str, *, epoch: int) -> Job:
    """The job, locked, if it still runs under this epoch. Raises StaleEpoch otherwise."""
    job = _locked(session, job_id)
    if job.epoch != epoch or job.state is not JobState.RUNNING:
        raise StaleEpoch(f"job {job_id} is {job.state.value} at epoch {job.epoch}", job=job_id)
    return job


def finish(job: Job, state: JobState, failure: Failure | None = None) -> None:
    job.state = state
    job.lease_until = None
    job.done = job.total if state is JobState.SUCCEEDED else job.done
    job.end_time = now()
    if failure is not None:
        job.failure_reason, job.failure_message = failure.reason, failure.message


def runs_alone(job: Job) -> bool:
    """Whether it might harm what runs beside it."""
    return job.deaths > 0 or job.attempts >= SUSPICIOUS_ATTEMPTS


def retry(session: Session, job: Job, *, died: bool = False) -> bool:
    """Queue the job again under the next epoch, after a pause. Returns False if it has had its attempts.

    `died` says that the process went down in which the attempt ran.
    """
    job.attempts += 1
    job.deaths += died
    if job.attempts > len(RETRY_SECONDS) or job.deaths >= MAX_DEATHS:
        return False
    requeue(session, job, delay=RETRY_SECONDS[job.attempts - 1])
    return True


def release(session: Session, job_id: str, *, epoch: int) -> None:
    """Queue a job again at once that its worker gives back. Raises StaleEpoch if it has another owner."""
    requeue(session, own(session, job_id, epoch=epoch), delay=0.0)


def requeue(session: Session, job: Job, *, delay: float) -> None:
    job.epoch += 1
    job.state = JobState.QUEUED
    job.worker = None
    job.lease_until = None
    job.queue_time = now() + delay
    _announce(session, job, delay=delay)


def cancel_open(session: Session, parent: str) -> None:
    """Cancel the jobs of a parent that have not ended. Their workers learn of it at the next heartbeat."""
    session.execute(
        update(Job)
        .where(Job.parent == parent, Job.state.in_(OPEN_JOB_STATES))
        .values(state=JobState.CANCELLED, lease_until=None, end_time=now())
    )


def expired(session: Session) -> list[Job]:
    """Running jobs whose lease has run out, locked; a job whose owner never beat is among them."""
    query = (
        select(Job)
        .where(Job.state == JobState.RUNNING, func.coalesce(Job.lease_until, Job.start_time, 0.0) < now())
        .with_for_update(skip_locked=True)
    )
    return list(session.scalars(query))


def announce_forgotten(session: Session, *, after_seconds: float) -> int:
    """Announce queued jobs again whose messages seem lost: their queue has seen no claim for this long.

    A broker that was wiped, or a worker that died between taking a message and claiming its job, loses messages. A
    second message for the same epoch does no harm. Returns how many were announced.
    """
    threshold = now() - after_seconds
    busy = select(Job.queue).where(or_(Job.start_time > threshold, Job.queue_time > threshold)).distinct()
    query = (
        select(Job)
        .where(Job.state == JobState.QUEUED, Job.queue_time < threshold, Job.queue.not_in(busy))
        .with_for_update(skip_locked=True)
    )
    forgotten = list(session.scalars(query))
    for job in forgotten:
        job.queue_time = now()
        _announce(session, job, delay=0.0)
    return len(forgotten)
