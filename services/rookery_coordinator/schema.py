"""Brings a database to this release's schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from psycopg.errors import LockNotAvailable
from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from rookery_coordinator.database import Database
from rookery_shared.errors import MigrationBlocked

_LOCK = 7_665_237  # any number; all migrators ask for the same
LOCK_SECONDS = 5.0


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def migrate(database: Database, *, revision: str = "head", lock_seconds: float = LOCK_SECONDS) -> None:
    """Run the migrations that are missing, all or none. Of two migrators at once, one waits for the other.

    Whoever asks for a table after a migration that waits for it, waits as well. So it waits for each of PostgreSQL's
    locks no longer than `lock_seconds`; then it raises MigrationBlocked and has changed nothing.
    """
    patient = Database(database.url, seconds=0)
    try:
        with patient.engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                connection.execute(text(f"SET LOCAL lock_timeout = {round(lock_seconds * 1000)}"))
            command.upgrade(alembic_config(connection), revision)
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            message = (
                f"somebody holds a table that the migration changes, for longer than {lock_seconds:g} s; try again"
            )
            raise MigrationBlocked(message) from None
        raise
    finally:
        patient.close()
