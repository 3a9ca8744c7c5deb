"""Migrations on both databases: up, down, up again, and nothing between them and the tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import inspect

from rookery_coordinator.database import Database
from rookery_coordinator.schema import alembic_config, migrate
from rookery_coordinator.tables import Base


def tables(database: Database) -> set[str]:
    return {*inspect(database.engine).get_table_names()} - {"alembic_version"}


def test_migrations_make_the_tables(database: Database) -> None:
    assert tables(database) == {*Base.metadata.tables}
    with database.engine.connect() as connection:
        try:
            command.check(alembic_config(connection))
        except CommandError as error:
            pytest.fail(f"the tables and the migrations differ: {error}")


def test_down_and_up_again(database: Database) -> None:
    with database.engine.execution_options(writes=True).begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert tables(database) == set()
    migrate(database)
    assert tables(database) == {*Base.metadata.tables}


def test_two_migrators_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(migrate, [Database(database_url), Database(database_url)]))
    assert tables(Database(database_url)) == {*Base.metadata.tables}
