"""Turns exceptions of servicers into statuses. The only place in a server that catches everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc

from rookery.errors import RookeryError
from rookery_shared.errors import Overloaded
from rookery_shared.log import get_logger

RpcContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@asynccontextmanager
async def errors_become_statuses(method: str, context: RpcContext) -> AsyncIterator[None]:
    """A RookeryError becomes its own status with `ErrorInfo`; anything else is a bug: INTERNAL, logged, not told."""
    try:
        yield
    except (grpc.aio.AbortError, grpc.RpcError):
        raise
    except RookeryError as error:
        log = get_logger().debug if isinstance(error, Overloaded) else get_logger().info  # those are counted
        log("call refused", method=method, reason=error.reason, message=error.message)
        await context.abort(error.code, error.message, error.trailing_metadata())
    except Exception:
        get_logger().exception("call failed", method=method)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
