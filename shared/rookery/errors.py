"""The one root of all errors, and what a client raises when a call fails.

Every error knows its gRPC code and its reason. A server sends both with `google.rpc.ErrorInfo`; a client turns them
back into a `RookeryError`, so `except RookeryError as error: error.reason` reads the same on either side of the wire.
"""

from __future__ import annotations

from typing import Any, ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "rookery"
_DETAILS_KEY = "grpc-status-details-bin"


class RookeryError(Exception):
    """Something went wrong that a caller can tell apart by `reason`.

    To add an error: subclass this where it is raised, give it a `code` and a `reason`, and say in its docstring what
    the caller did or should do. `metadata` names the field, line or resource concerned.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"
    retry_seconds: ClassVar[float] = 0.0
    """When to try again, as `google.rpc.RetryInfo` says it; 0 says nothing of it."""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.metadata))

    def to_status(self) -> status_pb2.Status:
        """The error as `google.rpc.Status` with one `ErrorInfo`, and a `RetryInfo` if it says when to try again."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(info)
        if self.retry_seconds:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(round(self.retry_seconds * 1000))
            status.details.add().Pack(retry)
        return status

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """What carries the status next to a gRPC code and message."""
        return ((_DETAILS_KEY, self.to_status().SerializeToString()),)


def _rebuild(kind: type[RookeryError], message: str, metadata: dict[str, str]) -> RookeryError:
    return kind(message, **metadata)


class CallFailed(RookeryError):
    """A call that the server, or the way to it, answered with an error."""

    def __init__(
        self, message: str, *, code: grpc.StatusCode, reason: str, retry_seconds: float = 0.0, **metadata: str
    ) -> None:
        super().__init__(message, **metadata)
        self.code = code  # type: ignore[misc]  # a received error has the code that it was sent with
        self.reason = reason  # type: ignore[misc]  # likewise
        self.retry_seconds = retry_seconds  # type: ignore[misc]  # likewise

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_call, (self.message, self.code.name, self.reason, self.retry_seconds, self.metadata))


def _rebuild_call(message: str, code: str, reason: str, retry_seconds: float, metadata: dict[str, str]) -> CallFailed:
    return CallFailed(message, code=grpc.StatusCode[code], reason=reason, retry_seconds=retry_seconds, **metadata)


class BadFile(RookeryError):
    """A file that the user named cannot be read as what it should be; `line` says where."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "BAD_FILE"


def from_rpc(error: grpc.RpcError) -> CallFailed:
    """What a failed call said: the reason from its `ErrorInfo`, else the name of its code."""
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    metadata: Any = error.trailing_metadata() or ()
    status = status_pb2.Status.FromString(dict(metadata).get(_DETAILS_KEY, b""))
    info, retry = error_details_pb2.ErrorInfo(reason=code.name), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return CallFailed(
        status.message or message,
        code=code,
        reason=info.reason,
        retry_seconds=retry.retry_delay.ToMilliseconds() / 1000,
        **dict(info.metadata),
    )


__all__ = ["DOMAIN", "BadFile", "CallFailed", "RookeryError", "from_rpc"]
