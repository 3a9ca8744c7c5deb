"""Rows written without the session's unit of work, where there are many of them and nobody goes on with them."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from typing import Any

from sqlalchemy import JSON, Executable, Table, bindparam, column, func, inspect, literal, select
from sqlalchemy.orm import Session

from rookery_coordinator.tables import Base

_ORDER = {table: place for place, table in enumerate(Base.metadata.sorted_tables)}
"""A row comes after those that it names."""

Columns = tuple[Table, tuple[str, ...]]


def insert_new(session: Session) -> None:
    """Write what was added to a session, and let go of all that the session holds.

    A flush looks after each of the rows and takes a statement for each table, PostgreSQL a message for each row. All in
    one statement, a batch of five small creates takes 7 ms of CPU instead of 13, measured side by side. For a column of
    JSON, None is NULL on PostgreSQL, where a flush writes JSON's null; rows that are created have neither.
    """
    assert not session.dirty, "what was changed would be let go of, too"
    rows: dict[Columns, list[dict[str, Any]]] = defaultdict(list)
    for added in session.new:
        mapper, there = inspect(type(added)), inspect(added).dict
        row = {own.key: there[own.key] for own in mapper.columns if own.key in there}
        rows[mapper.local_table, tuple(row)].append(row)
    session.expunge_all()
    shapes = sorted(rows, key=lambda shape: _ORDER[shape[0]])
    connection = session.connection()
    if connection.dialect.name == "postgresql" and shapes:
        connection.execute(_insert_at_once(tuple(shapes)), {"rows": [rows[shape] for shape in shapes]})
        return
    for shape in shapes:
        connection.execute(shape[0].insert(), rows[shape])


@lru_cache(maxsize=100)
def _insert_at_once(shapes: tuple[Columns, ...]) -> Executable:
    """Takes "rows": a list for each shape of its rows, each an object of its columns."""
    given = bindparam("rows", type_=JSON)
    inserts = []
    for place, (table, names) in enumerate(shapes):
        typed = (column(name, table.c[name].type) for name in names)
        source = func.json_to_recordset(given[place]).table_valued(*typed)
        insert = table.insert().from_select(names, select(source.render_derived(with_types=True)))
        inserts.append(insert.cte(f"insert_{place}"))
    return select(literal(1)).add_cte(*inserts)
