"""A TCP proxy that spoils connections: it delays, cuts, refuses, swallows and truncates, until it is healed.

It stands before any server: PostgreSQL, Redis, RabbitMQ, S3, gRPC. It knows nothing of their protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self, TypeVar

CHUNK = 64 << 10
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: to close is to reset."""

T = TypeVar("T")


class Way(Enum):
    """Of the bytes, seen from the client."""

    UP = "up"
    DOWN = "down"


class Proxy:
    """Listens on a port of its own and passes on what it gets to `upstream`, such as "127.0.0.1:5432" or "unix:/path".

    With `listen` it listens there instead. All methods may be called from any thread. A fault is in effect when the
    method has returned.
    """

    def __init__(self, upstream: str, *, listen: str = "127.0.0.1:0") -> None:
        self.upstream = upstream
        """May change; it is for those who connect then."""
        self._listen = listen
        self._delay = 0.0
        self._refusing = self._swallowing = False
        self._left: dict[Way, int] = {}
        """Bytes that still pass before everything is cut; a way that is not here has no limit."""
        self._connections: set[_Connection] = set()
        self._accepted = 0
        self.passed = dict.fromkeys(Way, 0)
        """Bytes so far."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {upstream}", daemon=True)
        self._server: asyncio.Server | None = None
        self.address = listen

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._do(lambda: len(self._connections))

    @property
    def accepted(self) -> int:
        """How many there have been."""
        return self._accepted

    # --- faults ---------------------------------------------------------------------------------------------------

    def delay(self, seconds: float) -> None:
        """Hold each piece of data for so long, both ways."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def cut(self) -> int:
        """Reset the connections that are open. New ones are not affected. Returns how many there were."""
        return self._do(self._cut)

    def refuse(self) -> None:
        """Reset all connections, and new ones as they come."""

        def refuse() -> None:
            self._refusing = True
            self._cut()

        self._do(refuse)

    def half_open(self) -> None:
        """Lose all that is sent and tell nobody, neither the client nor the server.

        The connections that are open now, and those that come before the proxy is healed, stay deaf for ever.
        """

        def swallow() -> None:
            self._swallowing = True
            for connection in self._connections:
                connection.deaf = True

        self._do(swallow)

    def truncate(self, after_bytes: int, *, way: Way = Way.UP) -> None:
        """Pass so many more bytes, of all connections together; then end them, and refuse new ones.

        What has passed arrives, as after a sender that died.
        """
        self._do(lambda: self._left.update({way: after_bytes}))

    def heal(self) -> None:
        """Pass on everything again, to those who connect again."""

        def heal() -> None:
            self._refusing = self._swallowing = False
            self._delay = 0.0
            self._left.clear()

        self._do(heal)

    # --- in the loop ----------------------------------------------------------------------------------------------

    def _do(self, action: Callable[[], T]) -> T:
        async def run() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _serve(self) -> None:
        if self._listen.startswith("unix:"):
            self._server = await asyncio.start_unix_server(self._accept, self._listen.removeprefix("unix:"))
            return
        host, _, port = self._listen.rpartition(":")
        self._server = await asyncio.start_server(self._accept, host, int(port))
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.upstream.startswith("unix:"):
            return await asyncio.open_unix_connection(self.upstream.removeprefix("unix:"))
        host, _, port = self.upstream.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        connection = _Connection(writer, deaf=self._swallowing)
        self._connections.add(connection)
        try:
            if self._refusing:
                connection.reset()
                return
            up_reader, up_writer = await self._connect()
            connection.writers.append(up_writer)
            up = asyncio.create_task(self._pump(connection, reader, up_writer, Way.UP))
            down = asyncio.create_task(self._pump(connection, up_reader, writer, Way.DOWN))
            await asyncio.gather(up, down)
        except (OSError, asyncio.CancelledError):  # one of the two is gone, or the proxy ends
            connection.reset()
        finally:
            connection.end()
            self._connections.discard(connection)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        """Until one side has no more to send."""
        while data := await reader.read(CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            if connection.deaf:
                continue
            if (left := self._left.get(way)) is not None:
                self._left[way] = max(0, left - len(data))
                data = data[:left]
            self.passed[way] += len(data)
            writer.write(data)
            await writer.drain()
            if left is not None and not self._left.get(way, 1):
                self._refusing = True
                for each in self._connections:
                    each.end()
                return
        if not connection.deaf and writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()

    def _cut(self) -> int:
        open_now = [*self._connections]
        for connection in open_now:
            connection.reset()
        return len(open_now)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._cut()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # a connection may have come meanwhile
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


class _Connection:
    """A client's connection and ours to the server."""

    def __init__(self, writer: asyncio.StreamWriter, *, deaf: bool) -> None:
        self.writers = [writer]
        self.deaf = deaf

    def end(self) -> None:
        """After what has been written."""
        for writer in self.writers:
            writer.close()

    def reset(self) -> None:
        for writer in self.writers:
            connected = writer.get_extra_info("socket")
            if connected is not None and connected.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
