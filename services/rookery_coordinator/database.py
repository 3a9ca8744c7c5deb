"""The connection to SQL: PostgreSQL, or SQLite for one machine. Transactions, and the database's own clock.

A database that stops answering, or that is cut off without a word, must not hold the coordinator's threads: every
transaction has its time, and one that is over it loses its connection.
"""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from psycopg import Connection as PsycopgConnection
from psycopg import Error as PsycopgError
from sqlalchemy import Engine, Float, create_engine, event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from rookery_shared.errors import DatabaseUnavailable, NotStorable

_PATIENCE = 30.0
"""Seconds to wait for another's lock on an SQLite file."""
CONNECT_SECONDS = 5
TRANSACTION_SECONDS = 20.0
CONNECTIONS = 24
_IDLE_SECONDS = 2.0
"""A connection that was not used for this long is tried before it is."""
_WHEN_COMMITTED = "when_committed"


class now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function that it is
    """Seconds since the epoch by the database's clock; every time in the schema is one of these."""

    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(_element: now, _compiler: SQLCompiler, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(_element: now, _compiler: SQLCompiler, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class Database:
    """Hands out transactions. A write transaction commits when its block ends without an error.

    Its blocks raise DatabaseUnavailable if the database cannot be reached, or does not answer within the time that a
    transaction may take; nobody knows then whether a commit has happened. `seconds` of 0 sets no limit.
    """

    def __init__(self, url: str, *, seconds: float = TRANSACTION_SECONDS) -> None:
        self.url = url
        self._limit = _TimeLimit(seconds) if seconds and not url.startswith("sqlite") else None
        self.engine = _postgres_engine(url, self._limit) if not url.startswith("sqlite") else _sqlite_engine(url)
        self._reads = sessionmaker(self.engine, expire_on_commit=False)
        self._writes = sessionmaker(self.engine.execution_options(writes=True), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with _reachable(), self._reads() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        with _reachable(), self._writes.begin() as session:
            yield session
        for action in session.info.pop(_WHEN_COMMITTED, ()):
            action()

    def close(self) -> None:
        self.engine.dispose()
        if self._limit is not None:
            self._limit.close()


def when_committed(session: Session, action: Callable[[], None]) -> None:
    """Have something done once what the session has written is there; nothing if it comes to nothing."""
    session.info.setdefault(_WHEN_COMMITTED, []).append(action)


@contextmanager
def _reachable() -> Iterator[None]:
    """What the driver raises when it cannot reach the database, or when that has no time for us, as one error.

    What the database cannot keep, as another.
    """
    try:
        yield
    except DataError as error:
        raise NotStorable(f"the database cannot keep this: {str(error.orig).splitlines()[0]}") from error
    except (DBAPIError, PoolTimeout) as error:
        if isinstance(error, DBAPIError) and not _is_out_of_reach(error):
            raise
        raise DatabaseUnavailable(f"the database does not answer: {str(error).splitlines()[0]}") from error


def _is_out_of_reach(error: DBAPIError) -> bool:
    """SQLite calls more things operational than its lock."""
    if isinstance(error.orig, sqlite3.Error):
        return error.orig.sqlite_errorcode == sqlite3.SQLITE_BUSY
    return error.connection_invalidated or isinstance(error, OperationalError)


class _TimeLimit:
    """Cuts the connections of transactions that take too long, so that whoever waits for an answer gets an error.

    PostgreSQL's own limits do not help when it cannot be heard, nor do TCP's when something between answers for it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._until: dict[int, tuple[float, PsycopgConnection[Any]]] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="sql time limit", daemon=True).start()

    @property
    def options(self) -> str:
        """The same limit for the server's side, so that a coordinator that is gone leaves no locks behind."""
        limit = f"{self._seconds * 1000:.0f}"
        return f"-c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit}"

    def start(self, connection: PsycopgConnection[Any]) -> None:
        with self._lock:
            self._until[id(connection)] = (time.monotonic() + self._seconds, connection)

    def stop(self, connection: PsycopgConnection[Any] | None) -> None:
        with self._lock:
            self._until.pop(id(connection), None)

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            with self._lock:
                overdue = [(key, c) for key, (until, c) in self._until.items() if until < time.monotonic()]
                for key, connection in overdue:
                    del self._until[key]
                    _cut(connection)


def _cut(connection: PsycopgConnection[Any]) -> None:
    """Its reader sees the end of the stream at once. The descriptor stays the driver's to close."""
    with suppress(OSError, PsycopgError), socket.socket(fileno=socket.dup(connection.fileno())) as other:
        other.shutdown(socket.SHUT_RDWR)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """SQLite's timeout does not cover the change of the journal: of two who open a new file, one is refused at once."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": _PATIENCE, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        _write_ahead(connection)
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A reader that becomes a writer fails at once when another has written; a writer says so from the start.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres_engine(url: str, limit: _TimeLimit | None) -> Engine:
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "application_name": "rookery-coordinator",
    }
    if limit is not None:
        arguments["options"] = limit.options
    engine = create_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        pool_use_lifo=True,  # the few that a quiet coordinator uses are then fresh
        connect_args=arguments,
    )
    if limit is None:
        return engine

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, _: Any, args: Any, kwargs: Any) -> Any:
        connection = dialect.connect(*args, **kwargs)
        limit.start(connection)
        return connection

    @event.listens_for(engine, "checkout")
    def _try(connection: PsycopgConnection[Any], record: Any, _: Any) -> None:
        limit.start(connection)
        if time.monotonic() - record.info.get("used", 0.0) < _IDLE_SECONDS:
            return
        try:
            connection.execute("SELECT 1")
            connection.rollback()
        except PsycopgError as error:
            raise DisconnectionError(str(error)) from error

    @event.listens_for(engine, "checkin")
    def _leave(connection: PsycopgConnection[Any] | None, record: Any) -> None:
        limit.stop(connection)
        record.info["used"] = time.monotonic()

    return engine
