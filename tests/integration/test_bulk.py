"""Rows that are written all at once are the rows that a flush writes."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rookery_coordinator import submissions
from rookery_coordinator.api.base import Units
from rookery_coordinator.api.batches import Batches
from rookery_coordinator.bulk import insert_new
from rookery_coordinator.database import Database
from rookery_coordinator.tables import Base, Event, Request
from rookery_coordinator.types import AdaptationPlan
from rookery_shared.errors import InvalidField, NotStorable
from rookery_shared.types import Context, Question
from tests.integration.worlds import STUDENT, TEACHER, make_profiles

MADE_UP = {"name", "id", "parent", "job", "round", "scope", "sequence"}
"""Columns with identifiers: other ones for every adaptation."""
TIMES = {"time", "create_time", "queue_time", "not_before"}
TAUGHT = Context(
    title="Größe 'in' \"Metern\"",
    passage='A tab\there, \\u0041, {"json": null} and a new line\nthere.',
    questions=(Question(question="What?", answer="That: 雪\U0001f426."),),
)


def _create(session: Session) -> str:
    made = submissions.create_adaptation(
        session, teacher=TEACHER, student=STUDENT, plan=AdaptationPlan(self_edits=3), context=TAUGHT
    )
    return made.name


def _rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Of every table that creating an adaptation writes to."""
    with database.read() as session:
        return {
            table.name: [dict(row) for row in session.execute(select(table)).mappings()]
            for table in Base.metadata.sorted_tables
            if table.name != "profiles"
        }


def _told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """But for what differs from one adaptation to the next. A time is whether there is one."""
    return [
        {name: value > 1e9 if name in TIMES else value for name, value in row.items() if name not in MADE_UP}
        for row in rows
    ]


def test_rows_written_at_once_are_those_of_a_flush(database: Database) -> None:
    make_profiles(database)
    before = _rows(database)
    with database.write() as session:
        _create(session)
    flushed = _rows(database)
    with database.write() as session:
        _create(session)
        insert_new(session)
        assert not [*session.new]
    both = _rows(database)
    written = {name: rows[len(before[name]) :] for name, rows in flushed.items()}
    assert {name for name, rows in written.items() if rows} == {
        *("adaptations", "contexts", "events", "jobs", "outbox", "rounds")
    }
    for name, rows in written.items():
        assert _told(both[name][len(flushed[name]) :]) == _told(rows), name


def test_a_create_whose_caller_has_gone_is_not_made(database: Database) -> None:
    """Unless it is being written."""
    made: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def make(number: int, session: Session) -> tuple[str, int]:
        made.append(number)
        begun.set()
        assert go_on.wait(30)
        return f"resource-{number}", number

    async def ask() -> list[Any]:
        batches: Batches[int] = Batches(Units(database))
        calls = [
            asyncio.create_task(batches.create(f"r{i}", make=partial(make, i), show=lambda _session, _name: -1))
            for i in range(4)
        ]
        await asyncio.to_thread(begun.wait, 30)
        late = asyncio.create_task(batches.create("late", make=partial(make, 4), show=lambda _session, _name: -1))
        await asyncio.sleep(0)
        late.cancel()
        go_on.set()
        return await asyncio.gather(*calls, late, return_exceptions=True)

    *answers, gone = asyncio.run(ask())
    assert answers == [0, 1, 2, 3]
    assert isinstance(gone, asyncio.CancelledError)
    assert made == [0, 1, 2, 3]


def test_a_repeat_of_what_is_in_the_same_batch_is_no_new_request(database: Database) -> None:
    """Not even if what it asks for could not be."""

    def make(session: Session) -> tuple[str, str]:
        return "resource", "made"

    def refuse(session: Session) -> tuple[str, str]:
        raise InvalidField("no", field="x")

    async def ask() -> list[Any]:
        batches: Batches[str] = Batches(Units(database))
        makes = (make, refuse)
        return await asyncio.gather(
            *(batches.create("same", make=how, show=lambda _session, name: name) for how in makes),
            return_exceptions=True,
        )

    one, other = asyncio.run(ask())
    assert {one, other} <= {"made", "resource"}


def test_what_the_database_has_no_place_for_is_told(database: Database) -> None:
    if database.url.startswith("sqlite"):
        pytest.skip("SQLite has place for it")
    with pytest.raises(NotStorable), database.write() as session:
        session.add(Event(parent="p", message="one\0two"))


def test_many_are_written_in_their_order(database: Database) -> None:
    make_profiles(database)
    with database.write() as session:
        names = [_create(session) for _ in range(20)]
        insert_new(session)
    with database.read() as session:
        told = session.execute(select(Event.parent, Event.message).order_by(Event.sequence)).all()
    assert [parent for parent, _ in told] == [name for name in names for _ in range(2)]
    assert [message for _, message in told] == ["accepted", "round 0 (adapt) started"] * 20


def test_nothing_is_written_if_one_row_cannot_be(database: Database) -> None:
    make_profiles(database)
    with database.write() as session:
        submissions.remember(session, "once", "adaptations/a")
    before = _rows(database)
    with database.write() as session:
        _create(session)
        session.add(Request(id="once", resource="adaptations/b"))
        with pytest.raises(IntegrityError):
            insert_new(session)
        session.rollback()
    assert _rows(database) == before


def test_nothing_to_write_is_no_mistake(database: Database) -> None:
    with database.write() as session:
        insert_new(session)
