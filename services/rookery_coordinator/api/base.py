"""What all servicers share: running a unit of work on a thread, and pages."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from sqlalchemy import Select, literal, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from rookery_coordinator import submissions
from rookery_coordinator.database import Database
from rookery_shared.errors import InvalidField
from rookery_shared.faults import Point, fault_point

T = TypeVar("T")
Row = TypeVar("Row")

THREADS = 18
"""Fewer than there are connections to the database: the relay, the reaper and the others need some as well."""
DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Units:
    """Runs units of work against the database on a pool of threads, since the event loop must not block."""

    def __init__(self, database: Database, *, threads: int = THREADS) -> None:
        self._database = database
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="sql")

    async def read(self, work: Callable[[Session], T]) -> T:
        def unit() -> T:
            with self._database.read() as session:
                return work(session)

        return await self._run(unit)

    async def write(self, work: Callable[[Session], T]) -> T:
        def unit() -> T:
            with self._database.write() as session:
                result = work(session)
                fault_point(Point.COMMITTING)
            fault_point(Point.COMMITTED)
            return result

        return await self._run(unit)

    async def create(
        self, request_id: str, *, make: Callable[[Session], tuple[str, T]], show: Callable[[Session, str], T]
    ) -> T:
        """Create a resource, once for each request id. `make` returns its name and what it looks like."""
        submissions.check_request_id(request_id)

        def unit() -> T:
            try:
                with self._database.write() as session:
                    name = submissions.repeated(session, request_id)
                    if name is not None:
                        return show(session, name)
                    name, shown = make(session)
                    submissions.remember(session, request_id, name)
                    fault_point(Point.COMMITTING)
            except IntegrityError:  # the same request came twice at once, and the other was first
                with self._database.read() as session:
                    name = submissions.repeated(session, request_id)
                    if name is None:
                        raise
                    shown = show(session, name)
            fault_point(Point.COMMITTED)
            return shown

        return await self._run(unit)

    async def _run(self, unit: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, unit)


def page(
    session: Session,
    query: Select[Row],
    *,
    order: Sequence[InstrumentedAttribute[Any]],
    newest_first: bool = False,
    size: int,
    token: str,
    place: Callable[[Row], Sequence[Any]] | None = None,
) -> tuple[list[Row], str]:
    """One page, and the token of the next or "". The columns of `order` are unique together.

    `place` gives their values for a row, if they are not its own.

    Raises InvalidField for a token that no page gave out.
    """
    limit = min(size or DEFAULT_PAGE, MAX_PAGE)
    key = tuple_(*order)
    if token:
        last = tuple_(*(literal(value) for value in _read_token(token, [column.type.python_type for column in order])))
        query = query.where(key < last if newest_first else key > last)
    query = query.order_by(*(column.desc() if newest_first else column for column in order)).limit(limit + 1)
    rows = list(session.scalars(query))
    if len(rows) <= limit:
        return rows, ""
    last_row = rows[limit - 1]
    values = [*place(last_row)] if place else [getattr(last_row, column.key) for column in order]
    return rows[:limit], base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


def _read_token(token: str, kinds: Sequence[type]) -> list[Any]:
    """Raises InvalidField unless it has a value of each kind."""
    try:
        values = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != len(kinds) or not all(map(_is_of, values, kinds)):
        raise InvalidField("page_token is not one that this method returned", field="page_token")
    return values


def _is_of(value: object, kind: type) -> bool:
    """Whether the database can compare it with a column of the kind."""
    if isinstance(value, int) and not isinstance(value, bool):
        return kind in (int, float) and abs(value) < 2**63
    return isinstance(value, kind) and not isinstance(value, bool) and str(value).isprintable()
