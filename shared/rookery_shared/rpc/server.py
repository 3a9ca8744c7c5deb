"""Starts a gRPC server with health and reflection, and stops it without dropping a call."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rookery.errors import RookeryError
from rookery.transport import DEADLINE_SECONDS, MESSAGE_OPTIONS
from rookery_shared.errors import AddressTaken
from rookery_shared.log import get_logger
from rookery_shared.rpc.calls import CallInterceptor, Calls, Terms
from rookery_shared.rpc.errors import RpcContext
from rookery_shared.rpc.tls import Certificate
from rookery_shared.settings import ServerSettings

STREAM_SECONDS = 3600.0
"""As `DEADLINE_SECONDS`, for methods that answer with a stream."""
END_SECONDS = 1.0
"""For calls to come to their end once they are told to."""

__all__ = ["RpcContext", "RpcServer", "Secure", "Servicer", "run_service", "run_until_signalled"]

_OPTIONS = (
    *MESSAGE_OPTIONS,
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not take half of the calls
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_connection_age_grace_ms", 3_600_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicer:
    """One service to serve: how to add it to a server, and its descriptor for health and reflection."""

    add: Callable[[grpc.aio.Server], None]
    descriptor: ServiceDescriptor
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By method, the longest that a call may take whose caller does not say, where it is not the usual."""
    watches: frozenset[str] = frozenset()
    """Methods that only wait for events."""

    def terms(self) -> dict[str, Terms]:
        """By the methods' full names."""
        found: dict[str, Terms] = {}
        for method in self.descriptor.methods:
            usual = STREAM_SECONDS if method.server_streaming else DEADLINE_SECONDS
            found[f"/{self.descriptor.full_name}/{method.name}"] = Terms(
                seconds=self.seconds.get(method.name, usual), watch=method.name in self.watches
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Secure:
    """An address for TLS, and what the server shows there."""

    address: str
    certificate: Certificate


class RpcServer:
    """One listening address with its servicers. Healthy from `serve` until it is told to stop."""

    def __init__(
        self, servicers: Sequence[Servicer], *, address: str, settings: ServerSettings, secure: Secure | None = None
    ) -> None:
        """`secure` is where it listens for TLS, beside `address`."""
        self.address = address
        self._secure = secure
        self._drain_seconds = settings.drain_seconds
        self._calls = Calls(most=settings.calls_at_once, most_watches=settings.watches_at_once)
        terms = {name: terms for servicer in servicers for name, terms in servicer.terms().items()}
        age = ("grpc.max_connection_age_ms", round(settings.connection_seconds * 1000))
        self._server = grpc.aio.server(interceptors=[CallInterceptor(self._calls, terms)], options=(*_OPTIONS, age))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = [servicer.descriptor.full_name for servicer in servicers]
        for servicer in servicers:
            servicer.add(self._server)
        reflected = (*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(reflected, self._server)

    async def start(self) -> None:
        """Listen. Raises AddressTaken or NoCertificate."""
        with _listening(self.address):
            self._server.add_insecure_port(self.address)
        if self._secure:
            credentials = self._secure.certificate.credentials()
            with _listening(self._secure.address):
                self._server.add_secure_port(self._secure.address, credentials)
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        get_logger().info("serving", address=self.address)

    async def stop(self) -> None:
        """NOT_SERVING first, then no new calls; those in flight have the drain time to end by themselves.

        Watchers are ended when the others have: their callers go on at another server.
        """
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(self._drain_seconds + 2 * END_SECONDS))
        await self._calls.idle(seconds=self._drain_seconds)
        self._calls.end()
        await self._server.stop(END_SECONDS)  # those that watch the health are the last
        await stopping


@contextmanager
def _listening(address: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise AddressTaken(f"cannot listen at {address}: {error}", address=address) from error


def run_service(serving: Coroutine[Any, Any, None]) -> None:
    """Run a server's process to its end. A RookeryError ends it with exit code 1 and a line in its log."""
    signal.signal(signal.SIGTERM, _end)
    try:
        asyncio.run(serving)
    except RookeryError as error:
        get_logger().error("cannot go on", reason=error.reason, message=error.message)
        raise SystemExit(1) from None


def _end(number: int, _frame: object) -> NoReturn:
    """While it loads: in a container, where it is process 1, it would not hear of the signal otherwise."""
    raise SystemExit(128 + number)


async def run_until_signalled(
    servers: Sequence[RpcServer], *, background: Sequence[Callable[[], Awaitable[Any]]] = ()
) -> None:
    """Serve until SIGTERM or SIGINT. A background task that ends with an error ends the process with it.

    Raises a RookeryError such as AddressTaken if it cannot.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    stopped = asyncio.ensure_future(stop.wait())
    tasks: list[asyncio.Future[Any]] = []
    try:
        for server in servers:
            await server.start()
        tasks += [asyncio.ensure_future(start()) for start in background]
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        get_logger().info("stopping")
        await asyncio.gather(*(server.stop() for server in servers))
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.gather(stopped, *tasks, return_exceptions=True)
