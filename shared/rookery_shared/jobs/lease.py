"""A claimed job: how its handler says how far it is, and learns that it must stop; and how its lease is kept alive."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from rookery.errors import CallFailed, RookeryError
from rookery.internal.v1 import job_service_pb2 as pb
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.transport import call
from rookery_shared.errors import Cancelled, Preempted, StaleEpoch
from rookery_shared.faults import Point, fault_point
from rookery_shared.log import get_logger

FENCE = 0.9
"""Of a lease's time: when the work must have stopped."""

Action = Callable[[], None]


class Lease:
    """An attempt at a job, as its handler sees it."""

    def __init__(self, *, job: str, epoch: int, until: float = math.inf) -> None:
        self.job = job
        self.epoch = epoch
        self.until = until
        """When the work stops by itself, on the monotonic clock: a little before somebody else may have the job."""
        self.done, self.total = 0, 0
        self._lock = threading.Lock()
        self._stopped: RookeryError | None = None
        self._when_stopped: list[Action] = []
        self._when_over: list[Action] = []

    def progress(self, done: int, total: int) -> None:
        """Between two steps of work. Raises Cancelled, StaleEpoch or Preempted if the work must stop now."""
        self.done, self.total = done, total
        fault_point(Point.STEP)
        self.check()

    def check(self) -> None:
        """Raises as `progress` does."""
        if time.monotonic() >= self.until:
            self.stop(StaleEpoch(f"the lease of {self.job} was not extended in time", job=self.job))
        if self._stopped is not None:
            raise self._stopped

    @property
    def stopped(self) -> RookeryError | None:
        """Why the work must stop, if it must."""
        return self._stopped

    def stop(self, why: RookeryError) -> None:
        """Have the handler raise this at its next step. A job that is to be given back may still be lost."""
        with self._lock:
            if self._stopped is not None and (isinstance(why, Preempted) or not isinstance(self._stopped, Preempted)):
                return
            self._stopped = why
            actions = [*self._when_stopped]
        for action in actions:
            action()

    def when_stopped(self, action: Action) -> None:
        """Have something done as soon as the work must stop, in the thread that says so. It must not block."""
        with self._lock:
            self._when_stopped.append(action)
            stopped = self._stopped is not None
        if stopped:
            action()

    def when_over(self, action: Action) -> None:
        """Have something done when the job has ended for good: what was kept for another attempt is needed no more."""
        self._when_over.append(action)

    def over(self) -> None:
        """The job has ended for good. What is done now may fail without harm."""
        for action in self._when_over:
            try:
                action()
            except Exception as error:
                get_logger().warning("could not tidy up", job=self.job, error=f"{type(error).__name__}: {error}")


class KeptLease(Lease):
    """A lease that a thread keeps alive, by the coordinator's word that it is extended.

    The lease ends `seconds` after the last heartbeat; the worker counts from when it sent it. It asks for more after a
    third of that. If it has none after two thirds, the work is told to stop; at nine tenths, `until`, it must have
    stopped.
    """

    def __init__(self, jobs: JobServiceStub, *, job: str, epoch: int, seconds: float, since: float) -> None:
        """`since` is when the claim was sent, on the monotonic clock."""
        super().__init__(job=job, epoch=epoch, until=since + seconds * FENCE)
        self._jobs = jobs
        self._seconds = seconds
        self._renewed = since
        self._left = threading.Event()
        self._when_renewed: list[Action] = []
        self._when_left: list[Action] = []
        self._thread = threading.Thread(target=self._keep, name=f"lease {job}", daemon=True)

    def __enter__(self) -> KeptLease:
        if time.monotonic() - self._renewed > self._seconds / 3:
            self._renew()  # the answer to the claim took long
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        for action in self._when_left:
            action()

    def when_renewed(self, action: Action) -> None:
        """Have something done whenever `until` has moved. It must not block."""
        self._when_renewed.append(action)

    def when_left(self, action: Action) -> None:
        """Have something done when the worker has no more to do with the job, however it ended."""
        self._when_left.append(action)

    def _keep(self) -> None:
        interval = self._seconds / 3
        pause = self._renewed + interval - time.monotonic()
        while not self._left.wait(max(0.0, pause)):
            if self._renew():
                pause = self._renewed + interval - time.monotonic()
            elif self._stopped is None or isinstance(self._stopped, Preempted):
                pause = interval / 10
            else:
                return

    def _renew(self) -> bool:
        """One heartbeat. Returns whether it extended the lease; if there is no hope for that, the work is stopped."""
        sent, interval = time.monotonic(), self._seconds / 3
        hope = self._renewed + 2 * interval
        patience = min(interval, hope - sent) if hope > sent else interval
        request = pb.HeartbeatRequest(job=self.job, epoch=self.epoch, done=self.done, total=self.total)
        try:
            response = call(self._jobs.Heartbeat, request, seconds=patience)
        except CallFailed as error:
            if error.reason == StaleEpoch.reason or time.monotonic() >= hope:
                self.stop(StaleEpoch(f"lost the lease of {self.job}: {error}", job=self.job))
            return False
        self._renewed = sent
        self.until = sent + self._seconds * FENCE
        for action in self._when_renewed:
            action()
        fault_point(Point.BEAT, job=self.job, epoch=self.epoch)
        if response.cancelled:
            self.stop(Cancelled(f"{self.job} was cancelled", job=self.job))
            return False
        return True
