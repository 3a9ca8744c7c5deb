"""Real servers of light servicers, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import grpc

from rookery.local.ports import free_port
from rookery.v1 import adaptation_service_pb2 as pb
from rookery.v1.adaptation_service_pb2_grpc import add_AdaptationServiceServicer_to_server
from rookery_shared.rpc.server import RpcContext, RpcServer, Servicer
from rookery_shared.settings import ServerSettings

TIMEOUT = 30.0
"""More than anything here takes, on a busy machine too."""


class Light:
    """A servicer that does what a test has written, and no more."""

    def __getattr__(self, method: str) -> Any:
        async def answer(request: Any, context: RpcContext) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, method)

        return answer


def adaptation_service(implementation: Light, **options: Any) -> Servicer:
    """The public service with a short name and all kinds of methods, done by something light."""
    return Servicer(
        add=lambda server: add_AdaptationServiceServicer_to_server(cast(Any, implementation), server),
        descriptor=pb.DESCRIPTOR.services_by_name["AdaptationService"],
        **options,
    )


class Serving:
    """A server, and the loop that it runs in."""

    def __init__(self, servicers: Sequence[Servicer], address: str, settings: ServerSettings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.target = address or f"127.0.0.1:{free_port()}"
        self._servicers, self._settings = servicers, settings
        self.do(self._start())

    def do(self, coroutine: Any) -> Any:
        """In the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(TIMEOUT)

    async def _start(self) -> None:
        self._server = RpcServer(self._servicers, address=self.target, settings=self._settings)
        await self._server.start()

    def stop(self) -> None:
        """As SIGTERM does."""
        self.do(self._server.stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def serve(*servicers: Servicer, address: str = "", **settings: Any) -> Iterator[Serving]:
    serving = Serving(servicers, address, ServerSettings(**settings))
    try:
        yield serving
    finally:
        serving.close()
