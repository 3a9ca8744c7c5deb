"""Following the events of runs and adaptations: one look at the database for all who watch, however many they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.orm import Session

from rookery_coordinator import tables
from rookery_coordinator.api.base import Units
from rookery_coordinator.events import events_after, newest_events
from rookery_coordinator.works import find_work
from rookery_shared.log import get_logger

LAST_SEQUENCE = 2**63 - 1
"""That a database can count."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiter:
    """Has seen the events of a work up to one, and waits for the next."""

    name: str
    after: int
    heard: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Feed:
    def __init__(self, units: Units, *, seconds: float) -> None:
        """`seconds` between two looks."""
        self._units, self._seconds = units, seconds
        self._waiters: set[_Waiter] = set()
        self._looking: asyncio.Task[None] | None = None

    async def watch(self, name: str, *, after: int) -> AsyncIterator[list[tables.Event]]:
        """Batches of events of a run or an adaptation, the last one when it has ended. Raises UnknownResource."""
        after = min(after, LAST_SEQUENCE)

        def look(session: Session) -> tuple[bool, list[tables.Event]]:
            # In this order: whatever ended the work wrote its last event in the same transaction.
            ended = find_work(session, name).state.ended
            return ended, events_after(session, name, after)

        while True:
            ended, events = await self._units.read(look)
            if events:
                after = events[-1].sequence
                yield events
            elif ended:
                return
            else:
                await self._next(name, after)

    async def _next(self, name: str, after: int) -> None:
        """Until there is an event after this one."""
        waiter = _Waiter(name=name, after=after)
        self._waiters.add(waiter)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await waiter.heard
        finally:
            self._waiters.discard(waiter)

    async def _look(self) -> None:
        """For as long as anybody waits. Who cannot look looks again."""
        while self._waiters:
            await asyncio.sleep(self._seconds)
            names = sorted({waiter.name for waiter in self._waiters})
            try:
                newest = await self._units.read(partial(newest_events, parents=names))
            except Exception as error:  # they wait until somebody can look
                get_logger().warning("cannot look for events", error=f"{type(error).__name__}: {error}")
                continue
            for waiter in self._waiters:
                if newest.get(waiter.name, 0) > waiter.after and not waiter.heard.done():
                    waiter.heard.set_result(None)
