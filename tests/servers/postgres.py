"""PostgreSQL from the pgserver wheel."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pgserver.postgres_server import PostgresServer, get_server
from sqlalchemy import create_engine, text


@contextmanager
def start_postgres(within: Path | None = None) -> Iterator[str]:
    """The SQLAlchemy URL of a running server. Raises RuntimeError, with its log, if it has not run to the end.

    Its files are in a new folder, which is not to be in pytest's: as root the server runs as another user, and every
    pytest that starts shuts the folder of all to other users.
    """
    with tempfile.TemporaryDirectory(prefix="rookery-postgres-", dir=within) as folder:
        server = get_server(folder, cleanup_mode="delete")
        try:
            yield str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            try:
                _require_running(server)
            finally:
                server.cleanup()


def _require_running(server: PostgresServer) -> None:
    process = server.get_postmaster_info().process  # as it was when it started: None, if it had ended before that
    if process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
        log = server.log.read_text(errors="replace")
        raise RuntimeError(f"PostgreSQL has ended by itself:\n{log[-4000:]}")


def make_database(server_url: str) -> str:
    """The URL of a new, empty database on the server."""
    name = f"rookery_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    before, _, query = server_url.partition("?")
    return f"{before.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
