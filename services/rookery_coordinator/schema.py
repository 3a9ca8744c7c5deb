"""Brings a database to this release's schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from psycopg.errors import LockNotAvailable
from sqlalchemy import event, text
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
    """Run the migrations that are missing, all or none. Raises what `migrating` raises."""
    with migrating(database, lock_seconds=lock_seconds) as connection:
        command.upgrade(alembic_config(connection), revision)


@contextmanager
def migrating(database: Database, *, lock_seconds: float = LOCK_SECONDS) -> Iterator[Connection]:
    """A transaction for migrations. Of two migrators at once, one waits for the other.

    Whoever asks for a table after a migration that waits for it, waits as well. So it waits for each of PostgreSQL's
    locks no longer than `lock_seconds`; then it raises MigrationBlocked and has changed nothing.
    """
    patient = Database(database.url, seconds=0)
    if patient.engine.dialect.name == "sqlite":
        # It changes a table by making another in its place, to which the references of the rest must hold.
        event.listen(patient.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys=OFF"))
    try:
        with patient.engine.execution_options(writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                connection.execute(text(f"SET LOCAL lock_timeout = {round(lock_seconds * 1000)}"))
            yield connection
    except OperationalError as error:
        if isinstance(error.orig, LockNotAvailable):
            message = f"somebody holds a table that the migration changes for over {lock_seconds:g} s; try again"
            raise MigrationBlocked(message) from None
        raise
    finally:
        patient.close()
