"""Turns exceptions of servicers into statuses. The only place in a server that catches everything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from rookery.errors import RookeryError
from rookery_shared.log import get_logger

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """A RookeryError becomes its own status with `ErrorInfo`; anything else is a bug: INTERNAL, logged, not told."""

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(details)
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, details.method),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _guard(handler.unary_unary, details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guard(method: Any, name: str) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await method(request, context)
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:
            await _abort(error, name, context)

    return guarded


def _guard_stream(method: Any, name: str) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in method(request, context):
                yield response
        except (grpc.aio.AbortError, grpc.RpcError):
            raise
        except Exception as error:
            await _abort(error, name, context)

    return guarded


async def _abort(error: Exception, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if not isinstance(error, RookeryError):
        get_logger().exception("call failed", method=name)
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has the details")
    else:
        get_logger().info("call refused", method=name, reason=error.reason, message=error.message)
        await context.abort(error.code, error.message, error.trailing_metadata())
