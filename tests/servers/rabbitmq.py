"""RabbitMQ as Debian installs it, run without its service: everything that it writes is in a folder of the test.

It has an epmd of its own too, the name server of Erlang's nodes, which otherwise outlives the broker.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kombu.connection import Connection
from kombu.exceptions import OperationalError

from rookery.local.ports import free_port
from tests.servers.processes import Server, ServerProcess

BIN = Path("/usr/lib/rabbitmq/bin")
READY_SECONDS = 120.0
CONTROL_ATTEMPTS = 3
"""On a busy machine rabbitmqctl has ended with the exit code of a wrong usage that was right a moment later."""
_ERLANG = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none"
"""One scheduler, which sleeps when there is nothing to do: a test's broker leaves the machine to the others."""


def has_rabbitmq() -> bool:
    return (BIN / "rabbitmq-server").exists() and shutil.which("epmd") is not None


class RabbitMQServer(Server):
    """A broker that keeps its queues across restarts, on one port for as long as it lives.

    `config` are lines of rabbitmq.conf, such as "consumer_timeout = 61000".
    """

    def __init__(self, folder: Path, *, config: Sequence[str] = ()) -> None:
        super().__init__()
        self._folder = folder
        self.port = free_port()
        self._epmd_port, dist_port = free_port(), free_port()
        lines = [f"listeners.tcp.1 = 127.0.0.1:{self.port}", "log.file.level = warning", *config]
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (folder / "plugins").write_text("[].")
        self._env = {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"rookery-{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG,
        }
        self._epmd: ServerProcess | None = None

    def url(self, vhost: str = "/") -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def start(self) -> None:
        """Until it takes connections: about ten seconds."""
        log = self._folder / "rabbitmq.log"
        if self._epmd is None or not self._epmd.alive:
            self._epmd = ServerProcess(["epmd", "-port", str(self._epmd_port)], log=log, env=self._env)
            self._epmd.wait_for_port(self._epmd_port)
        self._process = ServerProcess([str(BIN / "rabbitmq-server")], log=log, env=self._env)
        self._process.wait_for_port(self.port, seconds=READY_SECONDS)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                connect(self.url()).ensure_connection(max_retries=1, timeout=2).close()
            except (OSError, OperationalError):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def close(self) -> None:
        """For good."""
        self.kill()
        if self._epmd is not None:
            self._epmd.end(signal.SIGKILL)

    def make_vhost(self) -> str:
        """The URL of a new, empty virtual host: queues of other tests are not in it."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.url(name)

    def set_patience(self, *, milliseconds: int, looks_every: int) -> None:
        """The consumer_timeout of channels that are opened from now on, and how often they look."""
        values = {"consumer_timeout": milliseconds, "channel_tick_interval": looks_every}
        self.control("eval", ", ".join(f"application:set_env(rabbit, {name}, {n})" for name, n in values.items()) + ".")

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl. It takes a second or two of CPU."""
        environment = {**os.environ, **self._env}
        argv = [str(BIN / "rabbitmqctl"), "-q", *arguments]
        for _ in range(CONTROL_ATTEMPTS):
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=180)
            if done.returncode == 0:
                return done.stdout
            time.sleep(2.0)
        raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-500:]}")


def connect(url: str) -> Any:
    """A connection of kombu's, not yet opened."""
    return Connection(url, connect_timeout=5)  # type: ignore[no-untyped-call]  # kombu has no types


def waiting(url: str, queue: str) -> int:
    """Messages in a queue that are ready to be taken; 0 if there is no such queue."""
    with connect(url) as connection:
        try:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0


def take(url: str, queue: str) -> list[Any]:
    """All messages that are ready in a queue, as kombu's, acknowledged."""
    taken = []
    with connect(url) as connection:
        channel = connection.channel()
        while (raw := channel.basic_get(queue)) is not None:
            message = channel.message_to_python(raw)
            channel.basic_ack(message.delivery_tag)
            taken.append(message)
    return taken


@contextmanager
def start_rabbitmq(folder: Path, *, config: Sequence[str] = ()) -> Iterator[RabbitMQServer]:
    folder.mkdir(parents=True, exist_ok=True)
    server = RabbitMQServer(folder, config=config)
    try:
        server.start()
        yield server
    finally:
        server.close()
