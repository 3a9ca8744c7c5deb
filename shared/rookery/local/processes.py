"""One supervised process: started, watched, started again when it dies, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LAUNCH = str(Path(__file__).with_name("launch.py"))
STOP_SECONDS = 15.0
RESTART_PAUSES = (0.5, 1.0, 2.0, 5.0)
"""Seconds before each further restart; the last is repeated. A process that lived a minute starts over."""

LineSink = Callable[[str, str], None]
"""Takes a process's name and one line of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Supervised:
    """Keeps one command running until it is stopped."""

    def __init__(self, command: Command, sink: LineSink) -> None:
        self.command = command
        self._sink = sink
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self.restarts = 0
        self._thread = threading.Thread(target=self._supervise, name=command.name, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to its whole group if it takes too long."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._sink(self.command.name, "does not stop; killing it")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._thread.join()

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            started = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = self._start()
            assert self._process.stdout is not None
            for line in self._process.stdout:
                self._sink(self.command.name, line.rstrip("\n"))
            code = self._process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what it may have left behind
            if self._stopping.is_set():
                return
            if time.monotonic() - started > 60:
                self.restarts = 0
            pause = RESTART_PAUSES[min(self.restarts, len(RESTART_PAUSES) - 1)]
            self.restarts += 1
            self._sink(self.command.name, f"ended with code {code}; starting it again in {pause:g} s")
            self._stopping.wait(pause)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", _LAUNCH, *self.command.argv],
            env={**os.environ, **self.command.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, which stops them in order
        )
