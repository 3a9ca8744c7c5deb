"""What the end of an attempt means: a result to apply, another attempt, or the end of the work it belongs to."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.orm import Session

from rookery.errors import RookeryError
from rookery_coordinator import leases, rounds
from rookery_coordinator.tables import Job
from rookery_coordinator.types import Failure, JobState, State
from rookery_coordinator.works import find_work

Apply = Callable[[Session, Job], None]


def complete(session: Session, job_id: str, *, epoch: int, apply: Apply) -> None:
    """End a job with its result. The same result may come again, if its answer was lost.

    A result that cannot be used fails the work. Raises StaleEpoch if the job has another owner.
    """
    job = session.get(Job, job_id)
    if job is not None and job.state is JobState.SUCCEEDED and job.epoch == epoch:
        return
    if job is not None and job.round is not None:
        find_work(session, job.parent, lock=True)  # before the job's own lock, in this order everywhere
    job = leases.own(session, job_id, epoch=epoch)
    try:
        apply(session, job)
    except RookeryError as error:
        fail(session, job, Failure(reason=error.reason, message=error.message))
        return
    leases.finish(job, JobState.SUCCEEDED)
    rounds.job_ended(session, job)


def retry_or_fail(session: Session, job: Job, failure: Failure, *, died: bool = False) -> None:
    """After an attempt without a result; `died` if its process went down."""
    if not leases.retry(session, job, died=died):
        fail(session, job, failure)


def fail(session: Session, job: Job, failure: Failure) -> None:
    """End a job, and with it the run or adaptation that needs it."""
    leases.finish(job, JobState.FAILED, failure)
    if job.round is not None:
        session.flush()
        rounds.end_work(session, find_work(session, job.parent), State.FAILED, failure)


def report_failure(
    session: Session, job_id: str, *, epoch: int, failure: Failure, retryable: bool, died: bool = False
) -> None:
    """What a worker says of an attempt that went wrong. Raises StaleEpoch if the job has another owner."""
    job = session.get(Job, job_id)
    if job is not None and job.round is not None:
        find_work(session, job.parent, lock=True)
    job = leases.own(session, job_id, epoch=epoch)
    if retryable:
        retry_or_fail(session, job, failure, died=died)
    else:
        fail(session, job, failure)
