"""The life of a job: queued, claimed under a lease, ended. Nothing here knows what a job does.

All times are the database's, so that no two clocks are ever compared.

Each attempt has an epoch. A message names the epoch that it announces; a claim takes it; every later call must name it.
An attempt that fails or whose lease runs out is queued again under the next epoch, so that whatever the old owner still
sends has no effect. So is a job that its worker gives back, but that does not count as an attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, insert, literal, or_, select, update
from sqlalchemy.orm import Session

from rookery.tracing import current_trace
from rookery_coordinator.database import now, when_committed
from rookery_coordinator.identifiers import new_id
from rookery_coordinator.tables import Job, Outbox
from rookery_coordinator.types import OPEN_JOB_STATES, Failure, JobKind, JobState
from rookery_shared import metrics
from rookery_shared.errors import JobNotQueued, StaleEpoch, UnknownResource

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""Pause before each further attempt. A job that fails once more after the last has failed."""
AT_ONCE = 5_000
"""Most jobs of a queue that are announced again in one transaction."""
PROBES = 100
"""Most jobs of a queue without any claims that are announced again at once: if nobody listens, more are in the way."""
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
    held: bool = False
    """Its run or adaptation is paused."""


def enqueue(session: Session, new: NewJob) -> Job:
    """A job and the message that announces it, in one transaction. One that is held has no message yet."""
    job = Job(
        id=new_id(),
        kind=new.kind,
        queue=new.queue,
        parent=new.parent,
        round=new.round,
        scope=list(new.scope),
        state=JobState.HELD if new.held else JobState.QUEUED,
        epoch=1,
        attempts=0,
        deaths=0,
        done=0,
        total=len(new.scope),
        trace=current_trace(),
    )
    session.add(job)
    _count(session, "new", job.state)
    if not new.held:
        _announce(session, job, delay=0.0)
    return job


def _announce(session: Session, job: Job, *, delay: float) -> None:
    message = Outbox(job=job.id, epoch=job.epoch, queue=job.queue, trace=job.trace)
    if delay:
        message.not_before = now() + delay
    session.add(message)


def _count(session: Session, before: str, after: str, jobs: int = 1) -> None:
    when_committed(session, lambda: metrics.JOB_TRANSITIONS.labels(**{"from": before, "to": after}).inc(jobs))


def _locked(session: Session, job_id: str) -> Job:
    """As it is now, whatever the session has read of it before."""
    query = select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    job = session.scalar(query)
    if job is None:
        raise UnknownResource(f"there is no job {job_id}", name=job_id)
    return job


def _stale(job: Job) -> StaleEpoch:
    metrics.FENCED_WRITES.inc()
    return StaleEpoch(f"job {job.id} is {job.state.value} at epoch {job.epoch}", job=job.id)


def claim(session: Session, job_id: str, *, epoch: int, worker: str, lease_seconds: float) -> Job:
    """Take a queued job. The same worker may repeat its claim, in case the answer was lost.

    Raises JobNotQueued if somebody else has it, it has ended or is held, StaleEpoch if the message is of an older
    attempt.
    """
    job = _locked(session, job_id)
    if job.epoch != epoch:
        metrics.DUPLICATE_DELIVERIES.inc()
        raise StaleEpoch(f"job {job_id} is at epoch {job.epoch}, not {epoch}", job=job_id)
    if job.state is not JobState.QUEUED and not (job.state is JobState.RUNNING and job.worker == worker):
        metrics.DUPLICATE_DELIVERIES.inc()
        raise JobNotQueued(f"job {job_id} is {job.state.value}", job=job_id)
    if job.state is JobState.QUEUED:
        _count(session, JobState.QUEUED, JobState.RUNNING)
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
    raise _stale(job)


def own(session: Session, job_id: str, *, epoch: int) -> Job:
    """The job, locked, if it still runs under this epoch. Raises StaleEpoch otherwise."""
    job = _locked(session, job_id)
    if job.epoch != epoch or job.state is not JobState.RUNNING:
        raise _stale(job)
    return job


def finish(session: Session, job: Job, state: JobState, failure: Failure | None = None) -> None:
    _count(session, job.state, state)
    if state is JobState.SUCCEEDED:
        _observe(session, job)
    job.state = state
    job.lease_until = None
    job.done = job.total if state is JobState.SUCCEEDED else job.done
    job.end_time = now()
    if failure is not None:
        job.failure_reason, job.failure_message = failure.reason, failure.message


def _observe(session: Session, job: Job) -> None:
    seconds, kind = session.scalar(select(now() - job.start_time)) or 0.0, job.kind
    when_committed(session, lambda: metrics.JOB_SECONDS.labels(kind=kind).observe(seconds))


def runs_alone(job: Job) -> bool:
    """Whether it might harm what runs beside it."""
    return job.deaths > 0 or job.attempts >= SUSPICIOUS_ATTEMPTS


def retry(session: Session, job: Job, *, held: bool, died: bool = False) -> bool:
    """Queue the job again under the next epoch, after a pause. Returns False if it has had its attempts.

    `died` says that the process went down in which the attempt ran, `held` as in `requeue`.
    """
    job.attempts += 1
    job.deaths += died
    if job.attempts > len(RETRY_SECONDS) or job.deaths >= MAX_DEATHS:
        return False
    requeue(session, job, delay=RETRY_SECONDS[job.attempts - 1], held=held)
    return True


def requeue(session: Session, job: Job, *, delay: float, held: bool) -> None:
    """Under the next epoch. `held` if its run or adaptation is paused."""
    before = job.state
    job.epoch += 1
    job.state = JobState.HELD if held else JobState.QUEUED
    job.worker = None
    job.lease_until = None
    job.queue_time = now() + delay
    _count(session, before, job.state)
    if not held:
        _announce(session, job, delay=delay)


def hold(session: Session, parent: str) -> None:
    """Nobody can claim the parent's queued jobs until they are released. Those that run go on."""
    held = session.execute(
        update(Job).where(Job.parent == parent, Job.state == JobState.QUEUED).values(state=JobState.HELD)
    )
    _count(session, JobState.QUEUED, JobState.HELD, held.rowcount)  # type: ignore[attr-defined]  # as above


def unhold(session: Session, parent: str) -> None:
    """Queue the parent's held jobs, each under the epoch that it has."""
    released = _announce_again(session, Job.parent == parent, Job.state == JobState.HELD)
    _count(session, JobState.HELD, JobState.QUEUED, released)


def cancel_open(session: Session, parent: str) -> None:
    """Cancel the jobs of a parent that have not ended. Their workers learn of it at the next heartbeat."""
    are_open = (Job.parent == parent, Job.state.in_(OPEN_JOB_STATES))
    states = session.scalars(select(Job.state).where(*are_open).with_for_update()).all()
    for state, count in Counter(states).items():
        _count(session, state, JobState.CANCELLED, count)
    session.execute(update(Job).where(*are_open).values(state=JobState.CANCELLED, lease_until=None, end_time=now()))


def expired(session: Session) -> list[str]:
    """Running jobs whose lease has run out; a job whose owner never beat is among them."""
    return list(session.scalars(select(Job.id).where(*_is_expired())))


def own_expired(session: Session, job_id: str) -> Job | None:
    """The job, locked, if its lease has run out and nobody has seen to it since."""
    query = select(Job).where(Job.id == job_id, *_is_expired()).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def _is_expired() -> tuple[ColumnElement[bool], ...]:
    return Job.state == JobState.RUNNING, func.coalesce(Job.lease_until, Job.start_time, 0.0) < now()


def announce_forgotten(session: Session, *, after_seconds: float) -> int:
    """Announce queued jobs again whose messages seem lost. Returns how many.

    A broker that was wiped, or a worker that died between taking a message and claiming its job, loses messages. A
    second message for the same epoch does no harm. Two signs of a loss, both of them this long ago:

    - The job's queue has seen no claim since. Some of its jobs are announced: if they are claimed, the next sign tells
      of the rest. They are its youngest, so that if nothing is lost, and only nobody had the time, they are claimed
      last and tell nothing; and while others of its jobs run, which may take long, it is one.
    - The job was overtaken: of its queue, one that was queued after it has been claimed. Queues keep their order.
    """
    threshold = now() - after_seconds
    waiting = (
        Job.state == JobState.QUEUED,
        Job.queue_time < threshold,
        ~select(Outbox.id).where(Outbox.job == Job.id).exists(),  # else its message is still to be sent
    )
    announced = 0
    for queue in session.scalars(select(Job.queue).where(*waiting).distinct()).all():
        there = select(Job.id).where(*waiting, Job.queue == queue)
        if session.scalar(_is_quiet(queue, since=threshold)):
            lost = there.order_by(Job.queue_time.desc()).limit(1 if session.scalar(_is_busy(queue)) else PROBES)
        else:
            oldest = there.order_by(Job.queue_time)
            claimed = session.scalar(_last_claimed(queue, before=threshold, since=threshold - 2 * after_seconds)) or 0.0
            lost = oldest.where(Job.queue_time < claimed).limit(AT_ONCE)
        announced += _announce_again(session, Job.id.in_(session.scalars(lost.with_for_update(skip_locked=True)).all()))
    if announced:
        when_committed(session, lambda: metrics.FORGOTTEN_JOBS.inc(announced))
    return announced


def _is_quiet(queue: str, *, since: ColumnElement[float]) -> Select[Any]:
    """Nothing was claimed or queued."""
    seen = select(Job.id).where(Job.queue == queue, or_(Job.start_time > since, Job.queue_time > since))
    return select(~seen.exists())


def _is_busy(queue: str) -> Select[Any]:
    """Some of its jobs run."""
    running = select(Job.id).where(Job.queue == queue, Job.state == JobState.RUNNING, Job.lease_until > now())
    return select(running.exists())


def _last_claimed(queue: str, *, before: ColumnElement[float], since: ColumnElement[float]) -> Select[Any]:
    """When the youngest of the jobs that were claimed in a window of time had been queued."""
    return select(func.max(Job.queue_time)).where(
        Job.queue == queue, Job.start_time < before, Job.start_time > since, Job.start_time >= Job.queue_time
    )


def _announce_again(session: Session, *which: ColumnElement[bool]) -> int:
    """Queue jobs from now on, in the order in which they were, none before another. Returns how many."""
    at = session.scalar(select(now())) or 0.0
    columns = select(Job.id, Job.epoch, Job.queue, Job.trace, literal(at)).where(*which).order_by(Job.queue_time)
    session.execute(insert(Outbox).from_select(["job", "epoch", "queue", "trace", "not_before"], columns))
    queued = session.execute(update(Job).where(*which).values(state=JobState.QUEUED, queue_time=at))
    return queued.rowcount  # type: ignore[attr-defined, no-any-return]  # as above
