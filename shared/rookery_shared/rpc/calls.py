"""The calls that a server has in flight: how many there may be, how long each may take, and how they are ended.

Methods that only wait for events are counted apart, so that watchers, however many, leave room for others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from rookery.deadlines import ends_in
from rookery.tracing import TRACEPARENT, answering, set_code
from rookery_shared.errors import DeadlineExceeded, Overloaded, ShuttingDown
from rookery_shared.metrics import CALL_DURATION, CALLS_REFUSED
from rookery_shared.rpc.errors import RpcContext, errors_become_statuses

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_OUR_FAULTS = {
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
}
"""Statuses for which a server's span is marked as failed; others are the caller's doing."""
IDLE_SECONDS = 0.02
"""Between two looks at whether calls are in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a server gives to a call of a method."""

    seconds: float
    """The longest that it may take if its caller has not said how long."""
    watch: bool
    """It only waits for events, and its caller takes it up again where it was ended."""


class Calls:
    """Those in flight of one server, each with the timeout that ends it."""

    def __init__(self, *, most: int, most_watches: int) -> None:
        self._most = {False: most, True: most_watches}
        self._in_flight: dict[bool, set[asyncio.Timeout]] = {False: set(), True: set()}
        self._ended: set[asyncio.Timeout] = set()
        """By the server, before their time."""

    @asynccontextmanager
    async def place(self, seconds: float, *, watch: bool) -> AsyncIterator[None]:
        """A place for a call that may take so many seconds.

        Raises Overloaded without one, DeadlineExceeded at its end, ShuttingDown if the server ends it before.
        """
        calls = self._in_flight[watch]
        if len(calls) >= self._most[watch]:
            CALLS_REFUSED.inc()
            raise Overloaded(f"there are {len(calls)} {'watchers' if watch else 'calls in flight'}; try again")
        timeout = asyncio.timeout(seconds)
        calls.add(timeout)
        try:
            async with timeout:
                with ends_in(seconds):
                    yield
        except TimeoutError:
            if timeout in self._ended:
                raise ShuttingDown("the server shuts down; call another, or this one when it is back") from None
            if timeout.expired():
                raise DeadlineExceeded(f"not done after {seconds:.3g} s") from None
            raise
        finally:
            calls.discard(timeout)
            self._ended.discard(timeout)

    async def idle(self, *, seconds: float) -> None:
        """Until only watchers are left, or so many seconds are over."""
        end = time.monotonic() + seconds
        while self._in_flight[False] and time.monotonic() < end:
            await asyncio.sleep(IDLE_SECONDS)

    def end(self) -> None:
        """Now, however far they are: their callers take them up elsewhere."""
        for timeout in (*self._in_flight[False], *self._in_flight[True]):
            if not timeout.expired():
                self._ended.add(timeout)
                timeout.reschedule(asyncio.get_running_loop().time())


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call its place, its deadline, and the statuses of its errors.

    What has no terms, health and reflection, is always answered.
    """

    def __init__(self, calls: Calls, terms: Mapping[str, Terms]) -> None:
        """`terms` by the methods' full names, such as "/rookery.v1.RunService/GetRun"."""
        self._calls = calls
        self._terms = terms
        for method in (method for method, found in terms.items() if not found.watch):
            CALL_DURATION.labels(method=_short(method), code=grpc.StatusCode.INTERNAL.name)

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(details)
        terms = self._terms.get(details.method)
        if handler is None or terms is None:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._around_stream(handler.unary_stream, details.method, terms),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._around(handler.unary_unary, details.method, terms),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _around(self, method: Any, name: str, terms: Terms) -> Any:
        async def answer(request: Any, context: RpcContext) -> Any:
            with _observed(name, context, terms):
                async with errors_become_statuses(name, context), self._place(context, terms):
                    return await method(request, context)

        return answer

    def _around_stream(self, method: Any, name: str, terms: Terms) -> Any:
        async def answer(request: Any, context: RpcContext) -> None:
            # Closed here, not when it is collected: whoever goes away in the middle of an answer stops the work.
            with _observed(name, context, terms):
                async with (
                    errors_become_statuses(name, context),
                    self._place(context, terms),
                    aclosing(method(request, context)) as responses,
                ):
                    async for response in responses:
                        await context.write(response)

        return answer

    def _place(self, context: RpcContext, terms: Terms) -> AbstractAsyncContextManager[None]:
        left = context.time_remaining()
        return self._calls.place(terms.seconds if left is None else left, watch=terms.watch)


@contextmanager
def _observed(method: str, context: RpcContext, terms: Terms) -> Iterator[None]:
    """Its span, if it is traced, and how long it takes."""
    sent, started = dict(context.invocation_metadata() or ()), time.monotonic()
    with answering(method, after=str(sent.get(TRACEPARENT, ""))) as span:
        try:
            yield
        finally:
            said = context.code() or grpc.StatusCode.OK
            code = said if isinstance(said, grpc.StatusCode) else _CODES[said]
            set_code(span, code, failed=code in _OUR_FAULTS)
            if not terms.watch:
                CALL_DURATION.labels(method=_short(method), code=code.name).observe(time.monotonic() - started)


def _short(method: str) -> str:
    """Such as "RunService/GetRun"."""
    return method.rpartition(".")[2]
