"""A server's process: started, waited for, frozen, killed."""

from __future__ import annotations

import abc
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rookery.local.cluster import READY_SECONDS, DoesNotStart, wait_until_serving


class ServerProcess:
    """A program in a process group of its own, so that nothing of it outlives the test."""

    def __init__(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """To every process of its group."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def end(self, number: signal.Signals = signal.SIGTERM, *, seconds: float = 30.0) -> int:
        """Signal it and wait; SIGKILL if it takes too long. Returns its exit code."""
        self.send(number)
        self.send(signal.SIGCONT)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            return self._process.wait()
        finally:
            self.send(signal.SIGKILL)  # what it may have left behind

    def wait_for_port(self, port: int, *, seconds: float = 60.0) -> None:
        """Until it listens on the loopback. Raises TimeoutError, with the end of its log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.alive:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"nothing listens on {port}:\n{self._last_words()}")

    def wait_until_serving(self, target: str, *, seconds: float = READY_SECONDS) -> None:
        """Until its gRPC health says so. Raises TimeoutError, with the end of its log."""
        try:
            wait_until_serving(target, seconds=seconds)
        except DoesNotStart as error:
            left = "runs" if self.alive else f"has ended with {self._process.returncode}"
            raise TimeoutError(f"{error}; it {left}:\n{self._last_words()}") from error

    def _last_words(self) -> str:
        return self._log.read_text()[-2000:]


class Server(abc.ABC):
    """A server that can be stopped, killed and started again, with what it has stored."""

    def __init__(self) -> None:
        self._process: ServerProcess | None = None

    @abc.abstractmethod
    def start(self) -> None:
        """Until it takes connections."""

    def stop(self) -> None:
        """Stop it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.end(number)
            self._process = None
