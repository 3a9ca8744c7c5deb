"""Channels and calls: the one place where options, deadlines and retries are decided.

Used by the public client and by the services among themselves.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc

from rookery.deadlines import remaining
from rookery.errors import CallFailed, from_rpc
from rookery.tracing import TRACEPARENT, TracedCalls, current_trace

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_TLS = "https://"
DEADLINE_SECONDS = 30.0
"""For calls that answer at once. Calls that work, and streams, state their own."""

_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    # Every method is safe to repeat: creates carry a request id, jobs an epoch.
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2.5,
                    # gRPC's servers cancel what waits to be taken up when they stop (grpc/grpc#41785).
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)
MESSAGE_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
_CHANNEL_OPTIONS = (
    *MESSAGE_OPTIONS,
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),  # whoever lost a server wants to know of its successor
)


def open_channel(target: str) -> grpc.Channel:
    """A channel to `host:port`, `ipv4:10.0.0.1:port,10.0.0.2:port`, `dns:///name:port` or `unix:path`; or, over TLS, to
    `https://host` or `https://host:port`, trusting the certificates in gRPC's own GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.

    Connects when it is first used. Calls go to all servers behind it in turn, and carry the caller's trace.
    """
    if secure := _secure_target(target):
        channel = grpc.secure_channel(secure, grpc.ssl_channel_credentials(), options=_CHANNEL_OPTIONS)
    else:
        channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return grpc.intercept_channel(channel, TracedCalls())


def open_async_channel(target: str) -> grpc.aio.Channel:
    """As `open_channel`, for the event loop that runs. Calls carry the caller's trace, without spans of their own."""
    if secure := _secure_target(target):
        return grpc.aio.secure_channel(secure, grpc.ssl_channel_credentials(), options=_CHANNEL_OPTIONS)
    return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)


def _secure_target(target: str) -> str:
    """What gRPC calls the address of a target over TLS; empty for one without."""
    return f"dns:///{_with_port(target.removeprefix(_TLS).rstrip('/'))}" if target.startswith(_TLS) else ""


def _with_port(address: str) -> str:
    """A host, or an IPv6 address in brackets, and the port that it says or else that of HTTPS."""
    return address if ":" in address.rpartition("]")[2] else f"{address}:443"


def call(
    method: Callable[..., Response], request: Any, *, seconds: float = DEADLINE_SECONDS, patient: bool = False
) -> Response:
    """One unary call, which takes no longer than what is left of the call that is being answered.

    An overloaded server is asked again when it says, until the deadline. `patient` waits for an unreachable one until
    then, too, instead of failing at once. Raises CallFailed.
    """
    end = time.monotonic() + remaining(seconds)
    while True:
        try:
            return method(request, timeout=_until(end), wait_for_ready=patient)
        except grpc.RpcError as error:
            time.sleep(_pause(from_rpc(error), end))


async def call_async(
    method: Callable[..., Awaitable[Response]], request: Any, *, seconds: float = DEADLINE_SECONDS
) -> Response:
    """As `call`."""
    end = time.monotonic() + remaining(seconds)
    while True:
        try:
            return await method(request, timeout=_until(end), metadata=_traced())
        except grpc.RpcError as error:
            await asyncio.sleep(_pause(from_rpc(error), end))


def stream(
    method: Callable[..., Iterator[Response]], request: Any, *, seconds: float, patient: bool = False
) -> Iterator[Response]:
    """A call that answers many times; as `call`, until its first answer. Closing the iterator cancels the call."""
    end = time.monotonic() + remaining(seconds)
    answered = False
    while True:
        responses: Any = method(request, timeout=_until(end), wait_for_ready=patient)
        try:
            for response in responses:
                answered = True
                yield response
            return
        except grpc.RpcError as error:
            failure = from_rpc(error)
        finally:
            responses.cancel()
        if answered:
            raise failure
        time.sleep(_pause(failure, end))


async def stream_async(method: Callable[..., Any], request: Any, *, seconds: float) -> AsyncGenerator[Any]:
    """As `stream`."""
    end = time.monotonic() + remaining(seconds)
    answered = False
    while True:
        responses = method(request, timeout=_until(end), metadata=_traced())
        try:
            async for response in responses:
                answered = True
                yield response
            return
        except grpc.RpcError as error:
            failure = from_rpc(error)
        finally:
            responses.cancel()
        if answered:
            raise failure
        await asyncio.sleep(_pause(failure, end))


def _traced() -> tuple[tuple[str, str], ...]:
    trace = current_trace()
    return ((TRACEPARENT, trace),) if trace else ()


def _until(end: float) -> float:
    """Seconds. Raises CallFailed if there are none left: gRPC takes 0 for no deadline at all."""
    left = end - time.monotonic()
    if left <= 0:
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise CallFailed("the deadline was over before the call", code=code, reason=code.name)
    return left


def _pause(failure: CallFailed, end: float) -> float:
    """Seconds to wait: as long as the server asks, and a little more, so that not all come back at once.

    Raises the failure if the server asks for nothing, or for more than there is time for.
    """
    pause = failure.retry_seconds * random.uniform(1.0, 1.5)
    if not pause or time.monotonic() + pause >= end:
        raise failure from None
    return pause
