"""Creates that arrive at once share a transaction: most of what a small one costs is its statements and its commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy.orm import Session

from rookery.errors import RookeryError
from rookery_coordinator import submissions
from rookery_coordinator.api.base import Units
from rookery_coordinator.bulk import insert_new
from rookery_shared.errors import DatabaseUnavailable
from rookery_shared.log import get_logger

T = TypeVar("T")
LARGEST = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked(Generic[T]):
    request_id: str
    make: Callable[[Session], tuple[str, T]]
    """Only adds to the session, and adds nothing if it raises."""
    show: Callable[[Session, str], T]
    answered: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    context: Context = field(default_factory=copy_context)
    """Of the call: what it makes belongs to its trace, whoever writes it."""


class Batches(Generic[T]):
    """As `Units.create`, for creates of one kind. While one batch is written the next one gathers."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._waiting: list[_Asked[T]] = []
        self._writing: asyncio.Task[None] | None = None

    async def create(
        self, request_id: str, *, make: Callable[[Session], tuple[str, T]], show: Callable[[Session, str], T]
    ) -> T:
        """Create a resource, once for each request id. `make` adds it to the session and flushes nothing."""
        submissions.check_request_id(request_id)
        asked = _Asked(request_id=request_id, make=make, show=show)
        self._waiting.append(asked)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        try:
            return await asked.answered
        finally:
            if asked in self._waiting:  # whoever asked has gone
                self._waiting.remove(asked)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
            try:
                answers = await self._units.write(partial(_make_all, batch=batch))
            except DatabaseUnavailable as error:
                for asked in batch:
                    _settle(asked, error)
            except Exception as error:  # of any of them, perhaps one that was made before
                get_logger().info("creates are repeated one by one", creates=len(batch), error=type(error).__name__)
                for asked in batch:  # in their order: a repeat finds what it repeats
                    if not asked.answered.done():
                        await asyncio.create_task(self._alone(asked), context=asked.context)
            else:
                for asked, answer in zip(batch, answers, strict=True):
                    _settle(asked, answer)

    async def _alone(self, asked: _Asked[T]) -> None:
        try:
            _settle(asked, await self._units.create(asked.request_id, make=asked.make, show=asked.show))
        except Exception as error:
            _settle(asked, error)


def _make_all(session: Session, batch: list[_Asked[T]]) -> list[T | RookeryError]:
    """An answer for each.

    Nobody looks whether requests were made before: few were, and their ids are unique. Of those that were, at whatever
    time, this raises IntegrityError, or _ComesTwice if they would be refused now.
    """
    answers: list[T | RookeryError] = []
    made: set[str] = set()
    with session.no_autoflush:
        for asked in batch:
            try:
                name, shown = asked.context.run(asked.make, session)
            except RookeryError as error:
                if asked.request_id in made or submissions.repeated(session, asked.request_id) is not None:
                    raise _ComesTwice from error
                answers.append(error)
                continue
            submissions.remember(session, asked.request_id, name)
            made |= {asked.request_id} - {""}
            answers.append(shown)
        insert_new(session)
    return answers


class _ComesTwice(Exception):
    """It has a resource already."""


def _settle(asked: _Asked[T], answer: T | Exception) -> None:
    if asked.answered.done():  # whoever asked has gone
        return
    if isinstance(answer, Exception):
        asked.answered.set_exception(answer)
    else:
        asked.answered.set_result(answer)
