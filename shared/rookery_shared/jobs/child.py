"""The process that runs a worker's jobs: `python -m rookery_shared.jobs.child DESCRIPTOR MODULE:FUNCTION`.

It owns whatever the handlers own: the device, the models. It knows of jobs what its worker tells it over the socket
behind the descriptor, and tells it what comes of them. It has no connection to the coordinator. It ends when its worker
ends, in whatever way that does. `function` is called once, and returns the handlers by the kind of work.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from multiprocessing.connection import Connection

import grpc

from rookery.errors import RookeryError
from rookery.internal.v1 import isolation_pb2
from rookery.tracing import step
from rookery_shared.errors import Cancelled, Preempted, StaleEpoch
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import Handler
from rookery_shared.log import about, get_logger
from rookery_shared.metrics import count_elsewhere

PROGRESS_SECONDS = 0.25
"""Least time between two reports of an attempt's progress."""
PR_SET_PDEATHSIG = 1

_STOPS: Mapping[isolation_pb2.JobCommand.Reason.ValueType, type[RookeryError]] = {
    isolation_pb2.JobCommand.REASON_CANCELLED: Cancelled,
    isolation_pb2.JobCommand.REASON_LOST: StaleEpoch,
    isolation_pb2.JobCommand.REASON_PREEMPTED: Preempted,
}


class _Wire:
    """The socket to the worker. Any thread may send."""

    def __init__(self, connection: Connection[bytes, bytes]) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> isolation_pb2.JobCommand:
        """The next command. Raises EOFError or OSError if the worker has ended."""
        return isolation_pb2.JobCommand.FromString(self._connection.recv_bytes())

    def send(self, report: isolation_pb2.JobReport) -> None:
        with self._lock:
            self._connection.send_bytes(report.SerializeToString())

    def count(self, metric: str, labels: Mapping[str, str], value: float) -> None:
        counted = isolation_pb2.JobReport.Counted(metric=metric, labels=labels, value=value)
        self.send(isolation_pb2.JobReport(counted=counted))


class _ToldLease(Lease):
    """A lease that the worker keeps alive. It ends by itself if the worker says nothing."""

    def __init__(self, wire: _Wire, *, job: str, epoch: int, until: float) -> None:
        super().__init__(job=job, epoch=epoch, until=until)
        self._wire = wire
        self._said = 0.0

    def progress(self, done: int, total: int) -> None:
        super().progress(done, total)
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS:
            self._said = now
            progress = isolation_pb2.JobReport.Progress(done=done, total=total)
            self._wire.send(isolation_pb2.JobReport(job=self.job, epoch=self.epoch, progress=progress))


class _Child:
    """Does as it is told."""

    def __init__(self, wire: _Wire, handlers: Mapping[str, Handler]) -> None:
        self._wire = wire
        self._handlers = handlers
        self._leases: dict[tuple[str, int], _ToldLease] = {}

    def obey(self, command: isolation_pb2.JobCommand) -> None:
        job, epoch = command.job, command.epoch
        if command.HasField("start"):
            lease = _ToldLease(self._wire, job=job, epoch=epoch, until=command.start.until)
            self._leases[job, epoch] = lease
            _in_thread(f"job {job}", lambda: self._run(command.start, lease))
        elif (job, epoch) in self._leases:
            lease = self._leases[job, epoch]
            match command.WhichOneof("command"):
                case "renew":
                    lease.until = command.renew.until
                case "stop":
                    lease.stop(_STOPS[command.stop.reason](command.stop.message))
                case "end":
                    del self._leases[job, epoch]
                    if command.end.over:
                        _in_thread(f"end of {job}", lease.over)

    def _run(self, start: isolation_pb2.JobCommand.Start, lease: _ToldLease) -> None:
        report = isolation_pb2.JobReport(job=lease.job, epoch=lease.epoch)
        kind = start.claim.WhichOneof("work") or ""
        with about(job=lease.job, epoch=lease.epoch, kind=kind, parent=start.claim.parent):
            try:
                with step(kind, after=start.trace, attributes={"rookery.job": lease.job}):
                    report.result.CopyFrom(self._handlers[kind](start.claim, lease))
            except BaseException as error:  # a thread that ended in silence would keep its worker waiting
                report.failure.CopyFrom(_failure(error))
        self._wire.send(report)


def _in_thread(name: str, function: Callable[[], None]) -> None:
    threading.Thread(target=function, name=name, daemon=True).start()


def _failure(error: BaseException) -> isolation_pb2.JobReport.Failure:
    if isinstance(error, RookeryError):
        return isolation_pb2.JobReport.Failure(
            reason=error.reason, message=str(error), code=error.code.value[0], metadata=error.metadata
        )
    get_logger().error("job broke", exc_info=error)
    message = f"{type(error).__name__}: {error}"
    return isolation_pb2.JobReport.Failure(reason="INTERNAL", message=message, code=grpc.StatusCode.INTERNAL.value[0])


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for ignored in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)  # the worker gets them, too, and says what is to be done
    faulthandler.enable()
    wire = _Wire(Connection(int(sys.argv[1])))
    count_elsewhere(wire.count)
    module, _, function = sys.argv[2].partition(":")
    child = _Child(wire, getattr(import_module(module), function)())
    wire.send(isolation_pb2.JobReport(ready=isolation_pb2.JobReport.Ready()))
    while True:
        try:
            command = wire.receive()
        except (EOFError, OSError):
            os._exit(0)  # nobody wants what the threads are doing
        child.obey(command)


if __name__ == "__main__":
    main()
