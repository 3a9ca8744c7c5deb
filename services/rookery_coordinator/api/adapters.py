"""AdapterService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery.errors import RookeryError
from rookery.v1 import adapter_service_pb2 as pb
from rookery.v1.adapter_service_pb2_grpc import AdapterServiceServicer
from rookery_coordinator import aliases, integrity
from rookery_coordinator.api.base import Units, page
from rookery_coordinator.api.messages import adapter_message, alias_message, step_message
from rookery_coordinator.inventory import GRACE_SECONDS, Inventory
from rookery_coordinator.tables import Adapter
from rookery_shared.errors import InvalidField
from rookery_shared.rpc.server import RpcContext
from rookery_shared.store.adapters import FILES, AdapterCache, CachedAdapter, make_links
from rookery_shared.store.base import ObjectStore

CHUNK_BYTES = 1024 * 1024
LINK_SECONDS, MAX_LINK_SECONDS = 3600.0, 7 * 86_400.0


class AdapterApi(AdapterServiceServicer):
    def __init__(self, units: Units, store: ObjectStore, cache: AdapterCache, inventory: Inventory) -> None:
        self._units = units
        self._store = store
        self._cache = cache
        self._inventory = inventory

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: RpcContext) -> pb.Adapter:
        return await self._units.read(
            lambda session: adapter_message(session, aliases.find_adapter(session, request.name), full=True)
        )

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: RpcContext) -> pb.ListAdaptersResponse:
        def read(session: Session) -> pb.ListAdaptersResponse:
            query = select(Adapter)
            if request.profile:
                query = query.where(Adapter.profile == request.profile)
            rows, token = page(
                session,
                query,
                order=(Adapter.create_time, Adapter.name),
                newest_first=True,
                size=request.page_size,
                token=request.page_token,
            )
            adapters = [adapter_message(session, row, full=False) for row in rows]
            return pb.ListAdaptersResponse(adapters=adapters, next_page_token=token)

        return await self._units.read(read)

    async def DownloadAdapter(
        self, request: pb.DownloadAdapterRequest, context: RpcContext
    ) -> AsyncIterator[pb.DownloadAdapterResponse]:
        adapter = await self._units.read(lambda session: aliases.find_adapter(session, request.name))
        cached = await self._hold(adapter.name)
        for name in FILES:
            offset = 0
            while chunk := await asyncio.to_thread(_read, cached.folder / name, offset):
                yield pb.DownloadAdapterResponse(file=name, chunk=chunk)
                offset += len(chunk)

    async def _hold(self, name: str) -> CachedAdapter:
        """A verified copy. A refusal is put on record."""
        try:
            return await asyncio.to_thread(self._cache.hold, name)
        except RookeryError as error:
            reason, message, metadata = error.reason, error.message, error.metadata
            await self._units.write(
                lambda session: integrity.record_refusal(session, reason, message, metadata, by="DownloadAdapter")
            )
            raise

    async def PromoteAdapter(self, request: pb.PromoteAdapterRequest, context: RpcContext) -> pb.Alias:
        def promote(session: Session) -> pb.Alias:
            alias = request.alias or aliases.LIVE
            return alias_message(aliases.promote(session, request.name, alias, expected=request.expected or None))

        return await self._units.write(promote)

    async def RollbackAdapter(self, request: pb.RollbackAdapterRequest, context: RpcContext) -> pb.Alias:
        def roll_back(session: Session) -> pb.Alias:
            return alias_message(aliases.roll_back(session, request.profile, request.alias or aliases.LIVE))

        return await self._units.write(roll_back)

    async def CreateDownloadLinks(
        self, request: pb.CreateDownloadLinksRequest, context: RpcContext
    ) -> pb.DownloadLinks:
        seconds = LINK_SECONDS
        if request.HasField("lifetime"):
            seconds = request.lifetime.ToTimedelta().total_seconds()
            if not 1 <= seconds <= MAX_LINK_SECONDS:
                raise InvalidField("lifetime must be from a second to 7 days", field="lifetime")
        adapter = await self._units.read(lambda session: aliases.find_adapter(session, request.name))
        expire_time = time.time() + seconds
        links = await asyncio.to_thread(make_links, self._store, adapter.name, seconds=seconds)
        message = pb.DownloadLinks(
            links=[
                pb.DownloadLink(file=entry.name, url=url, size_bytes=entry.size, sha256=entry.sha256)
                for entry, url in links
            ]
        )
        message.expire_time.FromMilliseconds(int(expire_time * 1000))
        return message

    async def VerifyStore(
        self, request: pb.VerifyStoreRequest, context: RpcContext
    ) -> AsyncIterator[pb.VerifyStoreResponse]:
        grace = GRACE_SECONDS
        if request.HasField("grace"):
            grace = request.grace.ToTimedelta().total_seconds()
            if grace < 0:
                raise InvalidField("grace must not be negative", field="grace")
        steps = self._inventory.take(remove_orphans=request.remove_orphans, grace_seconds=grace)
        while (step := await asyncio.to_thread(next, steps, None)) is not None:
            yield step_message(step)


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as opened:
        opened.seek(offset)
        return opened.read(CHUNK_BYTES)
