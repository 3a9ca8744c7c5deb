"""Named points in the code where a test may have the process die, stop, pause or fail, or see that it was there.

Nothing happens at any of them unless the environment of the process says so, which is read when this is imported, so
that it holds for every process of a service, however it was started:

    ROOKERY_FAULTS        what happens where, such as "claimed=kill@0.02,published=pause:3,step=kill#5"
    ROOKERY_FAULTS_SEED   of the dice, with the process's number
    ROOKERY_FAULTS_WHILE  path of a file: nothing happens once it is gone; a fault with a time takes it away
    ROOKERY_HISTORY       folder in which each process writes what it reports of itself, as lines of JSON

A fault is ACTION[:SECONDS][@PROBABILITY][#TIME]. With a time it happens the so many-th time that the process is there,
otherwise each time with the probability, which is 1 if it is not given.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Point(StrEnum):
    """Where a fault may happen, and what the history tells of."""

    CLAIMED = "claimed"
    """A worker has the coordinator's answer to its claim."""
    BEAT = "beat"
    """A worker's heartbeat was accepted."""
    STEP = "step"
    """Between two steps of a job's work."""
    CHECKPOINTED = "checkpointed"
    """A checkpoint is in the store."""
    PUBLISHING = "publishing"
    """Nothing of an adapter is in the store yet."""
    FILE_STORED = "file-stored"
    """One of an adapter's files is in the store; after the last one, the manifest is not."""
    PUBLISHED = "published"
    """A whole adapter is in the store; nobody has been told."""
    WORKED = "worked"
    """A job's work is done; the coordinator has not been told."""
    COMPLETED = "completed"
    """A worker has the coordinator's answer to its result."""
    FAILED = "failed"
    """A worker has the coordinator's answer to its failure."""
    RELEASED = "released"
    """A worker that ends has the coordinator's answer to a job that it gives back."""
    COMMITTING = "committing"
    """The coordinator has made all changes that a call asks for, and not committed them."""
    COMMITTED = "committed"
    """The coordinator has committed them and not answered."""
    RELAYING = "relaying"
    """A message is in the outbox; the broker does not have it."""
    RELAYED = "relayed"
    """The broker has a message that is still in the outbox."""
    REAPING = "reaping"
    """Leases that ran out were found, nothing was done about them."""
    REAPED = "reaped"
    """Between the sweep for leases and the one for lost messages."""
    WRITTEN = "written"
    """A teacher has written one text of several."""
    SCORED = "scored"
    """An evaluator has scored some adapters of several."""


class Action(StrEnum):
    KILL = "kill"
    """SIGKILL to the process itself."""
    STOP = "stop"
    """SIGSTOP to the process itself, and SIGCONT after some seconds: all of its threads stand still."""
    PAUSE = "pause"
    """The thread sleeps for some seconds."""
    ERROR = "error"
    """Raises OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    action: Action
    seconds: float = 1.0
    probability: float = 1.0
    time: int = 0
    """Which time it happens; 0 for any."""


_FAULT = re.compile(r"(?P<action>[a-z]+)(:(?P<seconds>[0-9.]+))?(@(?P<probability>[0-9.]+))?(#(?P<time>[0-9]+))?")


def read_faults(text: str) -> dict[Point, Fault]:
    """Raises ValueError for a point or an action that there is not."""
    faults: dict[Point, Fault] = {}
    for part in filter(None, text.split(",")):
        name, _, what = part.partition("=")
        match = _FAULT.fullmatch(what)
        if match is None:
            raise ValueError(f"ROOKERY_FAULTS: {part!r} is not POINT=ACTION[:SECONDS][@PROBABILITY][#TIME]")
        numbers = {key: float(value) for key, value in match.groupdict().items() if value and key != "action"}
        time_ = int(numbers.pop("time", 0))
        faults[Point(name)] = Fault(action=Action(match["action"]), time=time_, **numbers)
    return faults


class _Kit:
    """What one process does at its points."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.faults = read_faults(environment.get("ROOKERY_FAULTS", ""))
        self._dice = random.Random(f"{environment.get('ROOKERY_FAULTS_SEED', '')}/{os.getpid()}")
        self._while = environment.get("ROOKERY_FAULTS_WHILE", "")
        self._history = environment.get("ROOKERY_HISTORY", "")
        self._times = dict.fromkeys(self.faults, 0)
        self._lock = threading.Lock()

    def reached(self, point: Point, about: Mapping[str, str | int]) -> None:
        if self._history and about:
            self._write({"point": point, **about})
        fault = self.faults.get(point)
        if fault is not None and self._happens(point, fault):
            if self._history:
                self._write({"point": point, "fault": fault.action})
            _do(fault, point)

    def _happens(self, point: Point, fault: Fault) -> bool:
        with self._lock:
            self._times[point] += 1
            happens = self._times[point] == fault.time if fault.time else self._dice.random() < fault.probability
        if not happens or not self._while:
            return happens
        if not fault.time:
            return Path(self._while).exists()
        try:
            Path(self._while).unlink()  # of several processes one succeeds
        except FileNotFoundError:
            return False
        return True

    def _write(self, event: Mapping[str, str | int]) -> None:
        """One line in one write, so that neither a death nor another thread tears it."""
        line = json.dumps({"time": time.time(), "pid": os.getpid(), **event}) + "\n"
        folder = Path(self._history)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{os.getpid()}.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())


def _do(fault: Fault, point: Point) -> None:
    match fault.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            # No child of ours: whoever kills those would leave us stopped for ever.
            wake = f"(sleep {fault.seconds}; kill -CONT {os.getpid()}) &"
            subprocess.run(["sh", "-c", wake], start_new_session=True, check=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.PAUSE:
            time.sleep(fault.seconds)
        case Action.ERROR:
            raise OSError(f"a fault at {point}, as ROOKERY_FAULTS asks for")


_kit = _Kit(os.environ) if {"ROOKERY_FAULTS", "ROOKERY_HISTORY"} & {*os.environ} else None


def fault_point(point: Point, **about: str | int) -> None:
    """The process is at a point. What is said about it goes into the history; what nothing is said about does not.

    Raises OSError if it is asked to.
    """
    if _kit is not None:
        _kit.reached(point, about)
