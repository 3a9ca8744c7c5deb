"""Migrations on databases with rows, beside those who use them: the previous release, another migrator, a reader."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, func, insert, inspect, select, text

from rookery_coordinator.database import Database
from rookery_coordinator.schema import alembic_config, migrate, migrating
from rookery_coordinator.tables import Base
from rookery_coordinator.types import State
from rookery_coordinator.works import find_run
from rookery_shared.errors import MigrationBlocked
from tests.integration.workers import Workers
from tests.integration.worlds import make_profiles, make_run
from tests.requirements.removal import Removal
from tests.servers.postgres import make_database

SCHEMA = "services/rookery_coordinator/schema.py"
REMOVALS = [
    Removal(
        what="a migrator gives up on a lock",
        file=SCHEMA,
        old='connection.execute(text(f"SET LOCAL lock_timeout = {round(lock_seconds * 1000)}"))',
        new='connection.execute(text("SET LOCAL statement_timeout = 5000"))',
        test="test_a_migrator_that_gets_no_lock_gives_up",
    ),
    Removal(
        what="of two migrators one waits",
        file=SCHEMA,
        old='connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})',
        new="pass",
        test="test_two_migrators_at_once",
    ),
    Removal(
        what="new columns have defaults for rows of the previous release",
        file="services/rookery_coordinator/migrations/versions/0005_relays_share_the_outbox.py",
        old='sa.Column("claimed_until", sa.Float(precision=53), nullable=True)',
        new='sa.Column("claimed_until", sa.Float(precision=53), nullable=False)',
        test="test_the_previous_release_works_on_this_schema[sqlite]",
    ),
]


def revisions(database: Database) -> list[str]:
    """Oldest first."""
    with database.engine.connect() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
        return [script.revision for script in scripts.walk_revisions()][::-1]


def downgrade(database: Database, revision: str) -> None:
    with migrating(database) as connection:
        command.downgrade(alembic_config(connection), revision)


def current(database: Database) -> str | None:
    with database.engine.connect() as connection:
        revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return revision


def half_a_run(database: Database) -> str:
    """A run in the middle: every table that it fills has rows, jobs are queued and running, messages wait."""
    make_profiles(database)
    run = make_run(database)
    workers = Workers(database)
    left = workers.run(8)
    workers.claim(*left[0])
    make_run(database)
    return run


def finish(database: Database, run: str) -> None:
    """Whatever was running is given up, whatever was announced is announced again."""
    with database.write() as session:
        session.execute(text("UPDATE jobs SET state = 'queued' WHERE state = 'running'"))
        session.execute(text("DELETE FROM outbox"))
        session.execute(
            text(
                "INSERT INTO outbox (job, epoch, queue, not_before) SELECT id, epoch, queue, 0 FROM jobs "
                "WHERE state = 'queued'"
            )
        )
    Workers(database).run_all()
    with database.read() as session:
        assert find_run(session, run).state is State.SUCCEEDED


def counts(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in Base.metadata.sorted_tables
        }


def test_down_and_up_again_with_rows(database: Database) -> None:
    run = half_a_run(database)
    before = counts(database.engine)
    first = revisions(database)[0]
    downgrade(database, first)
    assert current(database) == first
    migrate(database)
    assert counts(database.engine) == before
    finish(database, run)


def test_the_previous_release_works_on_this_schema(database: Database, database_url: str) -> None:
    """It reads what this one has written, by the columns that it knows; this one goes on with what it writes."""
    run = half_a_run(database)
    previous = MetaData()
    with another_database(database_url) as old:
        migrate(old, revision=revisions(database)[-2])
        previous.reflect(old.engine)
    with another_database(database_url) as other:
        migrate(other)
        for table in previous.sorted_tables:
            if table.name == "alembic_version":
                continue
            numbered = table.columns.get("sequence", table.columns.get("id")) if _is_numbered(table.name) else None
            columns = [column for column in table.columns if column is not numbered]
            with database.engine.connect() as connection:
                order = table.columns.get("position", columns[0])
                rows: list[Any] = [dict(row._mapping) for row in connection.execute(select(*columns).order_by(order))]
            with other.engine.execution_options(writes=True).begin() as connection:
                for row in rows:
                    connection.execute(insert(table).values(row))
        assert counts(other.engine) == counts(database.engine)
        finish(other, run)


def _is_numbered(table: str) -> bool:
    """By the database itself."""
    return table in ("events", "audit", "outbox")


class another_database:  # noqa: N801  # reads as what it gives
    """Of the same kind, empty."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}.other" if url.startswith("sqlite") else make_database(url)

    def __enter__(self) -> Database:
        self._opened = Database(self._url)
        return self._opened

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        if self._url.startswith("sqlite"):
            from pathlib import Path

            Path(self._url.removeprefix("sqlite:///")).unlink()


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Database]:
    opened = Database(make_database(postgres_url))
    yield opened
    opened.close()


def test_a_migrator_that_gets_no_lock_gives_up(postgres: Database) -> None:
    """While a reader holds a table, it gives up, has changed nothing, and leaves nobody waiting behind it."""
    migrate(postgres)
    last, previous = revisions(postgres)[-1], "0004"  # the next one changes the outbox
    downgrade(postgres, previous)
    with postgres.engine.begin() as reader:
        reader.execute(text("SELECT count(*) FROM outbox"))
        with pytest.raises(MigrationBlocked, match="somebody holds a table"):
            migrate(postgres, lock_seconds=0.3)
        assert current(postgres) == previous
        with postgres.engine.begin() as other:
            other.execute(text("SET LOCAL lock_timeout = 1000"))
            other.execute(text("SELECT count(*) FROM outbox"))
    migrate(postgres, lock_seconds=0.3)
    assert current(postgres) == last


def test_two_migrators_at_once(postgres: Database) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(migrate, [postgres, postgres]))
    assert {*inspect(postgres.engine).get_table_names()} == {*Base.metadata.tables, "alembic_version"}
    assert current(postgres) == revisions(postgres)[-1]
