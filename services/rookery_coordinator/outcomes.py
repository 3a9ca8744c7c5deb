"""What the end of an attempt means: a result to apply, another attempt, or the end of the work it belongs to."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from rookery.errors import RookeryError
from rookery_coordinator import leases, rounds
from rookery_coordinator.tables import Job
from rookery_coordinator.types import Failure, JobState, State
from rookery_coordinator.works import find_work
from rookery_shared.errors import StaleEpoch
from rookery_shared.log import get_logger
from rookery_shared.metrics import LATE_RESULTS, LEASES_EXPIRED

Apply = Callable[[Session, Job], None]


def complete(session: Session, job_id: str, *, epoch: int, apply: Apply) -> None:
    """End a job with its result. The same result may come again, if its answer was lost.

    A result that cannot be used fails the work. Raises StaleEpoch if the job has another owner.
    """
    job = session.get(Job, job_id)
    if job is not None and job.state is JobState.SUCCEEDED and job.epoch == epoch:
        LATE_RESULTS.inc()
        return
    _lock_work(session, job)
    try:
        job = leases.own(session, job_id, epoch=epoch)
    except StaleEpoch:
        LATE_RESULTS.inc()
        raise
    try:
        apply(session, job)
    except RookeryError as error:
        fail(session, job, Failure(reason=error.reason, message=error.message))
        return
    leases.finish(session, job, JobState.SUCCEEDED)
    rounds.job_ended(session, job)


def report_failure(
    session: Session, job_id: str, *, epoch: int, failure: Failure, retryable: bool, died: bool = False
) -> None:
    """What a worker says of an attempt that went wrong. Raises StaleEpoch if the job has another owner."""
    _lock_work(session, session.get(Job, job_id))
    job = leases.own(session, job_id, epoch=epoch)
    if retryable:
        retry_or_fail(session, job, failure, died=died)
    else:
        fail(session, job, failure)


def abandon(session: Session, job_id: str) -> bool:
    """End the attempt of a worker that is not heard of any more. Returns False if there is none such after all."""
    _lock_work(session, session.get(Job, job_id))
    job = leases.own_expired(session, job_id)
    if job is None:
        return False
    get_logger().warning("lease ran out", job=job.id, epoch=job.epoch, worker=job.worker, parent=job.parent)
    LEASES_EXPIRED.inc()
    message = f"{job.worker} stopped answering; it was attempt {job.attempts + 1}"
    retry_or_fail(session, job, Failure(reason="WORKER_LOST", message=message))
    return True


def release(session: Session, job_id: str, *, epoch: int) -> None:
    """Queue a job again at once that its worker gives back. Raises StaleEpoch if it has another owner."""
    _lock_work(session, session.get(Job, job_id))
    job = leases.own(session, job_id, epoch=epoch)
    leases.requeue(session, job, delay=0.0, held=_is_held(session, job))


def retry_or_fail(session: Session, job: Job, failure: Failure, *, died: bool = False) -> None:
    """After an attempt without a result; `died` if its process went down."""
    if not leases.retry(session, job, held=_is_held(session, job), died=died):
        fail(session, job, failure)


def fail(session: Session, job: Job, failure: Failure) -> None:
    """End a job, and with it the run or adaptation that needs it."""
    leases.finish(session, job, JobState.FAILED, failure)
    if job.round is not None:
        session.flush()
        rounds.end_work(session, find_work(session, job.parent), State.FAILED, failure)


def _lock_work(session: Session, job: Job | None) -> None:
    """What a job belongs to is locked before the job, in this order everywhere."""
    if job is not None and job.round is not None:
        find_work(session, job.parent, lock=True)


def _is_held(session: Session, job: Job) -> bool:
    return job.round is not None and find_work(session, job.parent).state is State.PAUSED
