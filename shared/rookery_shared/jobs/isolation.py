"""Runs a worker's jobs in another process, so that what they do to it cannot harm the worker.

The worker claims jobs, keeps their leases and reports; it holds no model and no device, and has no torch. `child` is
the other side. The process is started for the first job, and again after it has died. If a job does not stop in time
when it must, the process is killed: the others in it are given back, which does not count against them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc

from rookery.errors import CallFailed
from rookery.internal.v1 import isolation_pb2
from rookery.internal.v1 import job_service_pb2 as pb
from rookery.tracing import current_trace
from rookery_shared.errors import Cancelled, Preempted, StaleEpoch, TrainerDied, TrainerNotStarted
from rookery_shared.jobs.lease import KeptLease
from rookery_shared.log import get_logger
from rookery_shared.metrics import count

EXIT_SECONDS = 2.0
"""How long a process may take to end once it has hung up."""
DEATH_SECONDS = 5.0
"""How long a killed process is waited for. One that hangs in a driver may take for ever."""

_READY = isolation_pb2.JobReport(ready=isolation_pb2.JobReport.Ready())
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Isolated:
    """A handler for all kinds of work that has a process do it. `handlers` is the "module:function" it is built from.

    Raises, beside what the handlers raise, TrainerDied, TrainerNotStarted and Preempted.
    """

    def __init__(self, handlers: str, *, stop_seconds: float) -> None:
        self._handlers = handlers
        self._stop_seconds = stop_seconds
        self._turns = _Turns()
        self._lock = threading.Lock()
        self._process: JobProcess | None = None

    def __call__(self, claim: pb.ClaimResponse, lease: KeptLease) -> pb.CompleteRequest:
        with self._turns.take(lease, alone=claim.alone):
            process = self._process_for(alone=claim.alone)
            result = Attempt(process, claim, lease).result(stop_seconds=self._stop_seconds)
            process.sound = claim.alone
            return result

    def _process_for(self, *, alone: bool) -> JobProcess:
        """The one that all share, or a new one if it has died; for a job that runs alone, one that is sound.

        A new one for each that runs alone would have those that died together wait while a model is loaded for each.
        """
        with self._lock:
            if self._process is not None and alone and not self._process.sound:
                self._process.kill()
            if self._process is not None and not self._process.alive:
                self._process.ended.wait(DEATH_SECONDS)  # it may have the device until then
                self._process = None
            if self._process is None:
                self._process = JobProcess(self._handlers)
            self._process.sound = False
            return self._process


class JobProcess:
    """A process and the socket to it. Starts at once; lives until it dies or is killed."""

    def __init__(self, handlers: str) -> None:
        self.alive = True
        """As far as is known."""
        self.ready = False
        """It has come so far as to take jobs."""
        self.sound = True
        """Each job that it was given ran alone and has ended well, so one more has nobody else to die of."""
        self.killed = False
        """On purpose."""
        self.end = ""
        """How it ended."""
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._commands: queue.SimpleQueue[isolation_pb2.JobCommand | None] = queue.SimpleQueue()
        self._pid: int | None = None
        # The kernel ends the process when the thread that has started it ends, so this one stays with it.
        threading.Thread(target=self._see_to, args=(handlers,), name="job process", daemon=True).start()

    def add(self, attempt: Attempt) -> None:
        """Have it hear that the process is ready, what comes of the attempt, and of the process's end."""
        with self._lock:
            self._attempts[attempt.key] = attempt
            if self.ready:
                attempt.hear(_READY)
            if self.ended.is_set():
                attempt.hear(None)

    def remove(self, attempt: Attempt) -> None:
        with self._lock:
            self._attempts.pop(attempt.key, None)

    def send(self, command: isolation_pb2.JobCommand) -> None:
        """Never blocks, and never fails: who is waiting hears of the process's end."""
        self._commands.put(command)

    def kill(self) -> None:
        with self._lock:
            self.alive, self.killed = False, True
            if self._pid is not None and not self.ended.is_set():
                _kill_group(self._pid)

    def _see_to(self, handlers: str) -> None:
        try:
            self._live(handlers)
        except OSError as error:
            self.end = f"could not be started: {error}"
        finally:
            with self._lock:
                self.alive = False
                self.ended.set()
                attempts = [*self._attempts.values()]
            log = get_logger()
            (log.info if self.killed else log.error)("the process for jobs has ended", pid=self._pid, how=self.end)
            for attempt in attempts:
                attempt.hear(None)

    def _live(self, handlers: str) -> None:
        """From its start to its end. Raises OSError if it cannot be started."""
        ours, theirs = socket.socketpair()
        with Connection(ours.detach()) as connection:
            with theirs:
                argv = [sys.executable, "-m", "rookery_shared.jobs.child", str(theirs.fileno()), handlers]
                process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0)
            with self._lock:
                self._pid = process.pid
                if self.killed:
                    _kill_group(process.pid)
            get_logger().info("process for jobs started", pid=process.pid)
            threading.Thread(target=self._pass_on, args=(connection,), name="commands", daemon=True).start()
            self._listen(connection)
            self.alive = False
            self._commands.put(None)
        try:
            process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            process.wait()
        _kill_group(process.pid)  # what it may have left behind
        self.end = _how_it_ended(process.returncode)

    def _pass_on(self, connection: Connection[bytes, bytes]) -> None:
        with contextlib.suppress(OSError):
            while (command := self._commands.get()) is not None:
                connection.send_bytes(command.SerializeToString())

    def _listen(self, connection: Connection[bytes, bytes]) -> None:
        """Until it hangs up."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                report = isolation_pb2.JobReport.FromString(connection.recv_bytes())
                if report.HasField("counted"):
                    count(report.counted.metric, report.counted.labels, report.counted.value)
                    continue
                with self._lock:
                    if report.HasField("ready"):
                        self.ready = True
                        concerned = [*self._attempts.values()]
                    else:
                        concerned = [a for a in self._attempts.values() if a.key == (report.job, report.epoch)]
                for attempt in concerned:
                    attempt.hear(report)


class Attempt:
    """A job in a process, from when the process is ready."""

    def __init__(self, process: JobProcess, claim: pb.ClaimResponse, lease: KeptLease) -> None:
        self._process = process
        self._lease = lease
        self._heard: queue.SimpleQueue[isolation_pb2.JobReport | None] = queue.SimpleQueue()
        self._claim = claim
        self._begun = False
        self._stopped_at: float | None = None
        process.add(self)
        lease.when_stopped(self._stop)

    @property
    def key(self) -> tuple[str, int]:
        return self._lease.job, self._lease.epoch

    def hear(self, report: isolation_pb2.JobReport | None) -> None:
        """What the process says, or None when it has ended."""
        self._heard.put(report)

    def result(self, *, stop_seconds: float) -> pb.CompleteRequest:
        """Waits for it. An attempt that must stop has `stop_seconds`, and no longer than its lease.

        Raises what the lease was stopped with, CallFailed for what the handler raised, TrainerDied, TrainerNotStarted,
        or Preempted if the process had to be killed for another attempt.
        """
        try:
            while True:
                try:
                    report = self._heard.get(timeout=self._patience(stop_seconds))
                except queue.Empty:
                    self._out_of_patience(stop_seconds)
                    continue
                if report is None:
                    raise self._lease.stopped or self._death()
                if not self._begun:
                    self._lease.check()
                match report.WhichOneof("report"):
                    case "ready":
                        self._begin()
                    case "progress":
                        self._lease.done, self._lease.total = report.progress.done, report.progress.total
                    case "result":
                        return report.result
                    case "failure":
                        raise self._lease.stopped or _error(report.failure)
        finally:
            self._process.remove(self)

    def _begin(self) -> None:
        lease = self._lease
        lease.when_renewed(lambda: self._send(renew=isolation_pb2.JobCommand.Renew(until=lease.until)))
        lease.when_over(lambda: self._send(end=isolation_pb2.JobCommand.End(over=True)))
        lease.when_left(lambda: self._send(end=isolation_pb2.JobCommand.End()))
        start = isolation_pb2.JobCommand.Start(claim=self._claim, until=lease.until, trace=current_trace())
        self._send(start=start)
        self._begun = True
        if lease.stopped is not None:
            self._stop()  # which may have come just before

    def _patience(self, stop_seconds: float) -> float:
        """Seconds until the process must have answered."""
        ends = [self._lease.until]
        if self._stopped_at is not None:
            ends.append(self._stopped_at + stop_seconds)
        return max(0.0, min(ends) - time.monotonic())

    def _out_of_patience(self, stop_seconds: float) -> None:
        """It has not stopped in time, or its lease was not extended in time."""
        if self._patience(stop_seconds) > 0:
            return
        job, epoch = self._lease.job, self._lease.epoch
        if time.monotonic() >= self._lease.until:
            self._lease.stop(StaleEpoch(f"the lease of {job} was not extended in time", job=job))
        if self._begun:  # a process that still starts has nothing to stop, and others wait for it
            get_logger().warning("does not stop; killing its process", job=job, epoch=epoch)
            self._process.kill()
            self._process.ended.wait(DEATH_SECONDS)
        assert self._lease.stopped is not None
        raise self._lease.stopped

    def _death(self) -> Preempted | TrainerDied | TrainerNotStarted:
        if self._process.killed:
            return Preempted("its process was killed for another job that did not stop")
        if not self._process.ready:
            return TrainerNotStarted(f"the process for jobs {self._process.end} before it could take one")
        return TrainerDied(f"the process that ran the job {self._process.end}")

    def _stop(self) -> None:
        why = self._lease.stopped
        assert why is not None
        reason = isolation_pb2.JobCommand.REASON_LOST
        if isinstance(why, Cancelled):
            reason = isolation_pb2.JobCommand.REASON_CANCELLED
        elif isinstance(why, Preempted):
            reason = isolation_pb2.JobCommand.REASON_PREEMPTED
        self._stopped_at = self._stopped_at or time.monotonic()
        if self._begun:
            self._send(stop=isolation_pb2.JobCommand.Stop(reason=reason, message=str(why)))
        self.hear(isolation_pb2.JobReport())  # have it look at the clock

    def _send(
        self,
        *,
        start: isolation_pb2.JobCommand.Start | None = None,
        renew: isolation_pb2.JobCommand.Renew | None = None,
        stop: isolation_pb2.JobCommand.Stop | None = None,
        end: isolation_pb2.JobCommand.End | None = None,
    ) -> None:
        job, epoch = self.key
        self._process.send(isolation_pb2.JobCommand(job=job, epoch=epoch, start=start, renew=renew, stop=stop, end=end))


class _Turns:
    """Who may be in the process: several jobs, or one that runs alone. In order of arrival."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._inside = 0
        self._taken = False
        """By one that runs alone."""

    @contextmanager
    def take(self, lease: KeptLease, *, alone: bool) -> Iterator[None]:
        """Waits for a turn. Raises what the lease is stopped with."""
        turn = object()
        lease.when_stopped(self._look)
        with self._changed:
            self._waiting.append(turn)
            try:
                while self._waiting[0] is not turn or self._taken or (alone and self._inside):
                    lease.check()
                    self._changed.wait(max(0.0, lease.until - time.monotonic()))
                self._inside += 1
                self._taken = alone
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._taken = False
                self._changed.notify_all()

    def _look(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _error(failure: isolation_pb2.JobReport.Failure) -> CallFailed:
    metadata: dict[str, Any] = dict(failure.metadata)
    return CallFailed(failure.message, code=_CODES[failure.code], reason=failure.reason, **metadata)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
