"""PostgreSQL from the pgserver wheel."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgserver.postgres_server import get_server
from sqlalchemy import create_engine, text


@contextmanager
def start_postgres(folder: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a running server. Raises RuntimeError, with its log, if it has not run to the end."""
    server = get_server(str(folder), cleanup_mode="delete")
    ended = ""
    try:
        yield str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        if not server.get_postmaster_info().is_running():
            ended = server.log.read_text()
        server.cleanup()
    if ended:
        raise RuntimeError(f"PostgreSQL has ended by itself:\n{ended[-4000:]}")


def make_database(server_url: str) -> str:
    """The URL of a new, empty database on the server."""
    name = f"rookery_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    before, _, query = server_url.partition("?")
    return f"{before.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
