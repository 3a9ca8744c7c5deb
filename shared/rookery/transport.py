"""Channels and calls: the one place where options, deadlines and retries are decided.

Used by the public client and by the services among themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from rookery.errors import from_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
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
                    "retryableStatusCodes": ["UNAVAILABLE"],
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
)


def open_channel(target: str) -> grpc.Channel:
    """A channel to `host:port`, `dns:///name:port` or `unix:path`. Connects when it is first used."""
    return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)


def call(
    method: Callable[..., Response], request: Any, *, seconds: float = DEADLINE_SECONDS, patient: bool = False
) -> Response:
    """One unary call. `patient` waits for an unreachable server until the deadline instead of failing at once.

    Raises CallFailed.
    """
    try:
        return method(request, timeout=seconds, wait_for_ready=patient)
    except grpc.RpcError as error:
        raise from_rpc(error) from None


def stream(
    method: Callable[..., Iterator[Response]], request: Any, *, seconds: float, patient: bool = False
) -> Iterator[Response]:
    """A call that answers many times. Closing the iterator cancels the call. Raises CallFailed."""
    responses: Any = method(request, timeout=seconds, wait_for_ready=patient)
    try:
        yield from responses
    except grpc.RpcError as error:
        raise from_rpc(error) from None
    finally:
        responses.cancel()
