"""What happened: the rows' own history, written by the database, and what the processes said of themselves.

The first is complete and in order, since the database writes it in the same transaction as the change. The second says
who thought what, which the rows do not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from rookery_coordinator.database import Database
from rookery_shared.faults import Point

_TABLES = {
    # The row's name, and what else is kept beside its state.
    "jobs": ("id", "epoch", "worker"),
    "trials": ("id", "0", "NULL"),
    "rounds": ("id", "0", "NULL"),
    "runs": ("name", "0", "NULL"),
    "adaptations": ("name", "0", "NULL"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A row's state after a change of it. Of anything but a job the epoch is 0 and there is no worker."""

    table: str
    name: str
    state: str
    epoch: int = 0
    worker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a process says."""

    time: float
    """Seconds since the epoch by the machine's clock."""
    pid: int
    point: Point
    job: str = ""
    epoch: int = 0
    worker: str = ""
    adapter: str = ""
    fault: str = ""
    """What the process did to itself there; empty if nothing."""


def record_transitions(database: Database) -> None:
    """Have the database write down every change of a state, an epoch or a worker from now on."""
    postgres = database.engine.dialect.name == "postgresql"
    key = "BIGSERIAL PRIMARY KEY" if postgres else "INTEGER PRIMARY KEY AUTOINCREMENT"
    statements = [
        f'CREATE TABLE transitions (sequence {key}, "table" TEXT, name TEXT, state TEXT, epoch BIGINT, worker TEXT)'
    ]
    for table, columns in _TABLES.items():
        statements += (_postgres_trigger if postgres else _sqlite_trigger)(table, columns)
    with database.engine.execution_options(writes=True).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _values(table: str, columns: Sequence[str]) -> str:
    name, *rest = columns
    return ", ".join(
        [f"'{table}'", f"NEW.{name}", "NEW.state", *(f"NEW.{c}" if c.isalpha() and c != "NULL" else c for c in rest)]
    )


def _changed(columns: Sequence[str], differs: str) -> str:
    kept = ["state", *(column for column in columns[1:] if column in ("epoch", "worker"))]
    return " OR ".join(f"OLD.{column} {differs} NEW.{column}" for column in kept)


def _insert(table: str, columns: Sequence[str]) -> str:
    return f'INSERT INTO transitions ("table", name, state, epoch, worker) VALUES ({_values(table, columns)})'


def _postgres_trigger(table: str, columns: Sequence[str]) -> Iterable[str]:
    yield (
        f"CREATE FUNCTION record_{table}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {_insert(table, columns)}; RETURN NULL; END $$"
    )
    run = f"EXECUTE FUNCTION record_{table}()"
    yield f"CREATE TRIGGER {table}_added AFTER INSERT ON {table} FOR EACH ROW {run}"
    when = _changed(columns, "IS DISTINCT FROM")
    yield f"CREATE TRIGGER {table}_changed AFTER UPDATE ON {table} FOR EACH ROW WHEN ({when}) {run}"


def _sqlite_trigger(table: str, columns: Sequence[str]) -> Iterable[str]:
    do = f"BEGIN {_insert(table, columns)}; END"
    yield f"CREATE TRIGGER {table}_added AFTER INSERT ON {table} {do}"
    yield f"CREATE TRIGGER {table}_changed AFTER UPDATE ON {table} WHEN {_changed(columns, 'IS NOT')} {do}"


def read_transitions(database: Database) -> list[Transition]:
    """In the order in which they happened to each row."""
    query = 'SELECT "table", name, state, epoch, worker FROM transitions ORDER BY sequence'
    with database.read() as session:
        return [
            Transition(table=row[0], name=row[1], state=row[2], epoch=row[3], worker=row[4])
            for row in session.execute(text(query))
        ]


def read_events(folder: Path) -> list[Event]:
    """What all processes have written to ROOKERY_HISTORY, by time."""
    events: list[Event] = []
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            said = json.loads(line)
            events.append(Event(**{**said, "point": Point(said["point"])}))
    return sorted(events, key=lambda event: event.time)
