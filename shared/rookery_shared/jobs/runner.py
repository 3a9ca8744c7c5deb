"""Does one job: claim it, keep its lease alive, hand it to its handler, report what came of it.

Whatever goes wrong, the row decides. A claim that is refused means the message was a duplicate; a heartbeat that is
refused, or that cannot be sent for as long as the lease lasts, means the job has another owner: the handler is told to
stop at its next step, and nothing that it has done counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import grpc

from rookery.errors import CallFailed, RookeryError
from rookery.internal.v1 import job_service_pb2 as pb
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.transport import call
from rookery_shared.errors import Cancelled, JobNotQueued, StaleEpoch
from rookery_shared.faults import Point, fault_point
from rookery_shared.log import get_logger

REPORT_SECONDS = 60.0
"""How long a result may take to reach a coordinator that is away."""

Handler = Callable[[pb.ClaimResponse, "Lease"], pb.CompleteRequest]
"""Does the work of a claim. Calls `lease.progress` between steps. Returns a request with its result set."""

_NOT_RETRYABLE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DATA_LOSS,
}


class Lease:
    """A claimed job's lease, kept alive by a thread while the handler works."""

    def __init__(self, jobs: JobServiceStub, *, job: str, epoch: int, seconds: float) -> None:
        self.job = job
        self.epoch = epoch
        self._jobs = jobs
        self._seconds = seconds
        self._ended = threading.Event()
        self._stop: RookeryError | None = None
        self._done, self._total = 0, 0
        self._when_over: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._beat, name=f"lease {job}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, done: int, total: int) -> None:
        """Between two steps of work. Raises Cancelled or StaleEpoch if the work must stop now."""
        self._done, self._total = done, total
        fault_point(Point.STEP)
        if self._stop is not None:
            raise self._stop

    def stop(self, why: RookeryError) -> None:
        """Have the handler raise this at its next step."""
        self._stop = why

    def when_over(self, action: Callable[[], None]) -> None:
        """Have something done when the job has ended for good: what was kept for another attempt is needed no more."""
        self._when_over.append(action)

    def over(self) -> None:
        """The job has ended for good. What is done now may fail without harm."""
        for action in self._when_over:
            try:
                action()
            except Exception as error:
                get_logger().warning("could not tidy up", job=self.job, error=f"{type(error).__name__}: {error}")

    def _beat(self) -> None:
        interval = self._seconds / 3
        renewed = time.monotonic()
        while not self._ended.wait(interval):
            request = pb.HeartbeatRequest(job=self.job, epoch=self.epoch, done=self._done, total=self._total)
            try:
                response = call(self._jobs.Heartbeat, request, seconds=interval)
            except CallFailed as error:
                if error.reason == StaleEpoch.reason or time.monotonic() - renewed > self._seconds - interval:
                    self.stop(StaleEpoch(f"lost the lease of {self.job}: {error}", job=self.job))
                    return
            else:
                renewed = time.monotonic()
                fault_point(Point.BEAT, job=self.job, epoch=self.epoch)
                if response.cancelled:
                    self.stop(Cancelled(f"{self.job} was cancelled", job=self.job))
                    return


class JobRunner:
    """Runs jobs with the handlers of one worker, by the kind of work in the claim."""

    def __init__(self, jobs: JobServiceStub, *, worker: str, handlers: Mapping[str, Handler]) -> None:
        self._jobs = jobs
        self._worker = worker
        self._handlers = handlers

    def run(self, job: str, epoch: int) -> None:
        """Never raises for a job that went wrong: that is reported, or left to the lease."""
        log = get_logger().bind(job=job, epoch=epoch)
        request = pb.ClaimRequest(job=job, epoch=epoch, worker=self._worker)
        try:
            claim = call(self._jobs.Claim, request, seconds=REPORT_SECONDS, patient=True)
        except CallFailed as error:
            if error.reason not in (JobNotQueued.reason, StaleEpoch.reason):
                log.warning("claim failed", reason=error.reason, message=error.message)
            else:
                log.info("duplicate message dropped", reason=error.reason)
            return
        fault_point(Point.CLAIMED, job=job, epoch=epoch, worker=self._worker)
        kind = claim.WhichOneof("work") or ""
        log = log.bind(kind=kind, parent=claim.parent)
        started = time.monotonic()
        lease_seconds = claim.lease.ToTimedelta().total_seconds()
        with Lease(self._jobs, job=job, epoch=epoch, seconds=lease_seconds) as lease:
            try:
                result = self._handlers[kind](claim, lease)
                result.job, result.epoch = job, epoch
                fault_point(Point.WORKED)
                call(self._jobs.Complete, result, seconds=REPORT_SECONDS, patient=True)
                fault_point(Point.COMPLETED, job=job, epoch=epoch, worker=self._worker)
            except (StaleEpoch, Cancelled) as stopped:
                log.info("stopped", reason=stopped.reason)
                if isinstance(stopped, Cancelled):
                    lease.over()
            except Exception as error:
                self._report(error, lease)
            else:
                lease.over()
                log.info("done", seconds=round(time.monotonic() - started, 3))

    def _report(self, error: Exception, lease: Lease) -> None:
        if isinstance(error, CallFailed) and error.reason == StaleEpoch.reason:
            get_logger().info("result refused", job=lease.job, epoch=lease.epoch)
            return
        known = isinstance(error, RookeryError)
        get_logger().warning(
            "job failed", job=lease.job, epoch=lease.epoch, exc_info=None if known else error, error=str(error)
        )
        request = pb.FailRequest(
            job=lease.job,
            epoch=lease.epoch,
            reason=error.reason if isinstance(error, RookeryError) else "INTERNAL",
            message=str(error) if isinstance(error, RookeryError) else f"{type(error).__name__}: {error}",
            retryable=not (isinstance(error, RookeryError) and error.code in _NOT_RETRYABLE),
        )
        try:
            call(self._jobs.Fail, request, seconds=REPORT_SECONDS, patient=True)
            fault_point(Point.FAILED, job=lease.job, epoch=lease.epoch)
            if not request.retryable:
                lease.over()
        except CallFailed as failure:
            get_logger().warning("could not report; the lease will run out", job=lease.job, reason=failure.reason)
