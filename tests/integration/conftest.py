"""Databases, as everything that touches SQL is tested on SQLite and on PostgreSQL; and a model in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from tests.models import random_model, small_tokenizer
from tests.servers.postgres import make_database


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights and its tokenizer, as `from_pretrained` loads them."""
    folder = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


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
