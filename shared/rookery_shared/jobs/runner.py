"""Does one job: claim it, keep its lease alive, hand it to its handler, report what came of it.

Whatever goes wrong, the row decides. A claim that is refused means the message was a duplicate; a heartbeat that is
refused, or that cannot be sent for as long as the lease lasts, means the job has another owner: the handler is told to
stop at its next step, and nothing that it has done counts. A worker that is shut down gives its jobs back.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import grpc
from opentelemetry.trace import Span, SpanKind, StatusCode

from rookery.errors import CallFailed, RookeryError
from rookery.internal.v1 import job_service_pb2 as pb
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.tracing import step
from rookery.transport import call
from rookery_shared.errors import Cancelled, JobNotQueued, Preempted, StaleEpoch, TrainerDied
from rookery_shared.faults import Point, fault_point
from rookery_shared.jobs.lease import KeptLease, Lease
from rookery_shared.log import about, get_logger

REPORT_SECONDS = 60.0
"""How long a result may take to reach a coordinator that is away."""
RELEASE_SECONDS = 5.0
"""How long giving a job back may take, of the little time that a worker has which must end."""

Handler = Callable[[pb.ClaimResponse, Lease], pb.CompleteRequest]
"""Does the work of a claim. Calls `lease.progress` between steps. Returns a request with its result set."""
WorkerHandler = Callable[[pb.ClaimResponse, KeptLease], pb.CompleteRequest]
"""A Handler, or one that has somebody else do the work and needs to know when the lease is extended."""

_NOT_RETRYABLE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DATA_LOSS,
}


class JobRunner:
    """Runs jobs with the handlers of one worker, by the kind of work in the claim."""

    def __init__(self, jobs: JobServiceStub, *, worker: str, handlers: Mapping[str, WorkerHandler]) -> None:
        self._jobs = jobs
        self._worker = worker
        self._handlers = handlers
        self._lock = threading.Lock()
        self._leases: set[KeptLease] = set()
        self._stopping: Preempted | None = None

    def stop(self) -> None:
        """Give back the jobs that run, each after its current step, and those that come."""
        with self._lock:
            self._stopping = Preempted("the worker is being shut down")
            leases = [*self._leases]
        get_logger().info("giving back jobs", jobs=[lease.job for lease in leases])
        for lease in leases:
            lease.stop(self._stopping)

    def run(self, job: str, epoch: int, *, trace: str = "") -> None:
        """Never raises for a job that went wrong: that is reported, or left to the lease.

        `trace` is the span that goes on here, as a `traceparent`.
        """
        attributes = {"rookery.job": job}
        with (
            step("job", after=trace, kind=SpanKind.CONSUMER, attributes=attributes) as span,
            about(job=job, epoch=epoch),
        ):
            self._run(job, epoch, span)

    def _run(self, job: str, epoch: int, span: Span) -> None:
        # A name for each message: a second one that this worker gets is as much a duplicate as another worker's.
        worker = f"{self._worker}/{uuid.uuid4().hex[:8]}"
        request = pb.ClaimRequest(job=job, epoch=epoch, worker=worker)
        started = time.monotonic()
        try:
            claim = call(self._jobs.Claim, request, seconds=REPORT_SECONDS, patient=True)
        except CallFailed as error:
            if error.reason not in (JobNotQueued.reason, StaleEpoch.reason):
                get_logger().warning("claim failed", reason=error.reason, message=error.message)
            else:
                get_logger().info("duplicate message dropped", reason=error.reason)
            return
        fault_point(Point.CLAIMED, job=job, epoch=epoch, worker=worker)
        kind = claim.WhichOneof("work") or ""
        span.update_name(f"job {kind}")
        span.set_attribute("rookery.parent", claim.parent)
        seconds = claim.lease.ToTimedelta().total_seconds()
        lease = KeptLease(self._jobs, job=job, epoch=epoch, seconds=seconds, since=started)
        with self._known(lease), lease, about(kind=kind, parent=claim.parent):
            try:
                lease.check()
                result = self._handlers[kind](claim, lease)
                result.job, result.epoch = job, epoch
                fault_point(Point.WORKED)
                call(self._jobs.Complete, result, seconds=REPORT_SECONDS, patient=True)
                fault_point(Point.COMPLETED, job=job, epoch=epoch, worker=worker)
            except Exception as error:
                span.set_status(StatusCode.ERROR, type(lease.stopped or error).__name__)
                self._ended_without_result(lease.stopped or error, lease)
            else:
                lease.over()
                get_logger().info("done", seconds=round(time.monotonic() - started, 3))

    @contextmanager
    def _known(self, lease: KeptLease) -> Iterator[None]:
        """Among those that are stopped when the worker is."""
        with self._lock:
            self._leases.add(lease)
            stopping = self._stopping
        if stopping is not None:
            lease.stop(stopping)
        try:
            yield
        finally:
            with self._lock:
                self._leases.discard(lease)

    def _ended_without_result(self, why: Exception, lease: KeptLease) -> None:
        match why:
            case Preempted():
                self._release(lease)
            case Cancelled():
                get_logger().info("stopped", reason=why.reason)
                lease.over()
            case StaleEpoch():
                get_logger().info("stopped", reason=why.reason)
            case CallFailed(reason=StaleEpoch.reason):
                get_logger().info("result refused")
            case _:
                self._report(why, lease)

    def _release(self, lease: KeptLease) -> None:
        request = pb.ReleaseRequest(job=lease.job, epoch=lease.epoch)
        try:
            call(self._jobs.Release, request, seconds=RELEASE_SECONDS, patient=True)
        except CallFailed as failure:
            get_logger().warning("could not give back; the lease will run out", reason=failure.reason)
        else:
            fault_point(Point.RELEASED, job=lease.job, epoch=lease.epoch)
            get_logger().info("given back")

    def _report(self, error: Exception, lease: KeptLease) -> None:
        known = isinstance(error, RookeryError)
        get_logger().warning("job failed", exc_info=None if known else error, error=str(error))
        request = pb.FailRequest(
            job=lease.job,
            epoch=lease.epoch,
            reason=error.reason if isinstance(error, RookeryError) else "INTERNAL",
            message=str(error) if isinstance(error, RookeryError) else f"{type(error).__name__}: {error}",
            retryable=not (isinstance(error, RookeryError) and error.code in _NOT_RETRYABLE),
            process_died=isinstance(error, TrainerDied),
            metadata=error.metadata if isinstance(error, RookeryError) else None,
        )
        try:
            call(self._jobs.Fail, request, seconds=REPORT_SECONDS, patient=True)
            fault_point(Point.FAILED, job=lease.job, epoch=lease.epoch)
            if not request.retryable:
                lease.over()
        except CallFailed as failure:
            get_logger().warning("could not report; the lease will run out", reason=failure.reason)
