"""Databases: everything that touches SQL is tested on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from tests.servers.postgres import make_database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/rookery.db"
    return make_database(request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with this release's schema."""
    opened = Database(database_url)
    migrate(opened)
    yield opened
    opened.close()
