"""A database that is cut off without a word: calls are answered in time, and all goes on when it is back."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
import pytest
from sqlalchemy import text

from rookery.errors import from_rpc
from rookery.local.ports import free_port
from rookery.transport import call, open_channel
from rookery.v1.model_service_pb2 import GetProfileRequest
from rookery.v1.model_service_pb2_grpc import ModelServiceStub
from rookery_coordinator.database import CONNECT_SECONDS, Database
from rookery_coordinator.schema import migrate
from rookery_shared.errors import DatabaseUnavailable
from tests.faults.proxy import Proxy
from tests.integration.worlds import TEACHER, make_profiles
from tests.requirements.removal import Removal
from tests.servers.postgres import make_database
from tests.servers.processes import ServerProcess
from tests.waiting import wait_until

DATABASE = "services/rookery_coordinator/database.py"
REMOVALS = [
    Removal(
        what="a transaction that takes too long loses its connection",
        file=DATABASE,
        old="                    _cut(connection)",
        new="                    pass",
        test="test_a_silent_database_does_not_hold_a_transaction",
    ),
    Removal(
        what="the server ends what a lost coordinator has begun",
        file=DATABASE,
        old=' -c idle_in_transaction_session_timeout={limit}"',
        new='"',
        test="test_a_coordinator_that_is_gone_leaves_no_locks",
    ),
    Removal(
        what="an idle connection is tried before it is used",
        file=DATABASE,
        old='if time.monotonic() - record.info.get("used", 0.0) < _IDLE_SECONDS:',
        new="if True:",
        test="test_connections_that_died_are_replaced_before_they_are_used",
    ),
    Removal(
        what="what the driver raises is UNAVAILABLE",
        file=DATABASE,
        old="return error.connection_invalidated or isinstance(error, OperationalError)",
        new="return False",
        test="test_calls_are_answered_while_the_database_is_silent_and_after",
    ),
    Removal(
        what="a call is repeated while the database is away",
        file="shared/rookery_shared/errors.py",
        old='    reason = "DATABASE_UNAVAILABLE"\n    retry_seconds = 0.5\n',
        new='    reason = "DATABASE_UNAVAILABLE"\n',
        test="test_a_caller_with_time_does_not_notice_that_the_database_is_started_again",
    ),
]
LIMIT = 2.0
OUTAGE_SECONDS = 10.0
"""More than a channel's own repetitions last."""
ANSWER_SECONDS = 2 * CONNECT_SECONDS + LIMIT + 5.0
"""A connection that is found dead, another that cannot be made, and a slow machine."""


@pytest.fixture
def proxied(postgres_url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before PostgreSQL, and the URL of a database through it."""
    url = make_database(postgres_url)
    parts = urlsplit(url)
    folder = parse_qs(parts.query)["host"][0]
    with Proxy(f"unix:{folder}/.s.PGSQL.5432") as proxy:
        yield proxy, f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}{parts.path}?sslmode=disable"


def one(database: Database) -> int:
    with database.read() as session:
        return session.scalar(text("SELECT 1")) or 0


def test_a_silent_database_does_not_hold_a_transaction(proxied: tuple[Proxy, str]) -> None:
    proxy, url = proxied
    database = Database(url, seconds=LIMIT)
    assert one(database) == 1
    proxy.half_open()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(one, database)
        try:
            assert isinstance(asked.exception(ANSWER_SECONDS), DatabaseUnavailable)
        finally:
            proxy.cut()
    assert time.monotonic() - started < ANSWER_SECONDS
    proxy.heal()
    assert one(database) == 1
    database.close()


def test_connections_that_died_are_replaced_before_they_are_used(
    proxied: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rookery_coordinator.database._IDLE_SECONDS", 0.0)
    proxy, url = proxied
    database = Database(url, seconds=LIMIT)
    assert one(database) == 1
    assert proxy.cut() == 1
    assert one(database) == 1, "and nobody has noticed"
    database.close()


def test_a_coordinator_that_is_gone_leaves_no_locks(proxied: tuple[Proxy, str]) -> None:
    """It has a transaction open and is not heard of any more: others go on within the limit."""
    _, url = proxied
    gone, other = Database(url, seconds=LIMIT), Database(url, seconds=30.0)
    migrate(other)
    make_profiles(other)
    assert gone._limit is not None
    gone._limit.close()  # nothing of it runs any more
    held = gone.engine.raw_connection()
    held.cursor().execute("UPDATE profiles SET dtype = 'x'")
    started = time.monotonic()
    with other.write() as session:
        session.execute(text("UPDATE profiles SET dtype = 'y'"))
    assert time.monotonic() - started < 10.0
    held.invalidate()
    gone.close()
    other.close()


@pytest.fixture
def served(proxied: tuple[Proxy, str], tmp_path: Path) -> Iterator[tuple[ServerProcess, str]]:
    """A coordinator whose database is behind the proxy, and where it listens."""
    _, url = proxied
    database = Database(url)
    migrate(database)
    make_profiles(database)
    database.close()
    target = f"127.0.0.1:{free_port()}"
    environment = {
        "ROOKERY_DATABASE_URL": url,
        "ROOKERY_SQL_SECONDS": str(LIMIT),
        "ROOKERY_STORE_URL": f"file://{tmp_path}/objects",
        "ROOKERY_CACHE_FOLDER": f"{tmp_path}/cache",
        "ROOKERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",
        "ROOKERY_ADDRESS": target,
        "ROOKERY_JOB_ADDRESS": f"unix:{tmp_path}/jobs.sock",
    }
    server = ServerProcess(
        [sys.executable, "-m", "rookery_coordinator", "serve"], log=tmp_path / "coordinator.log", env=environment
    )
    try:
        server.wait_until_serving(target)
        yield server, target
    finally:
        server.end(signal.SIGKILL)


def test_calls_are_answered_while_the_database_is_silent_and_after(
    proxied: tuple[Proxy, str], served: tuple[ServerProcess, str]
) -> None:
    (proxy, _), (server, target) = proxied, served
    with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = ModelServiceStub(channel)

        def ask() -> str:
            """The reason of the error; empty without any."""
            try:
                stub.GetProfile(GetProfileRequest(name=TEACHER), timeout=60.0)
            except grpc.RpcError as error:
                return from_rpc(error).reason
            return ""

        assert ask() == ""
        proxy.half_open()
        with ThreadPoolExecutor(30) as pool:  # more than it has connections
            started = time.monotonic()
            answers = list(pool.map(lambda _: ask(), range(30)))
        assert {*answers} == {DatabaseUnavailable.reason}
        assert time.monotonic() - started < 2 * ANSWER_SECONDS
        assert server.alive
        proxy.heal()
        wait_until(lambda: ask() == "", seconds=ANSWER_SECONDS, what="it answers again")


def test_a_caller_with_time_does_not_notice_that_the_database_is_started_again(
    proxied: tuple[Proxy, str], served: tuple[ServerProcess, str]
) -> None:
    """Such as a worker with its result."""
    (proxy, _), (_, target) = proxied, served
    proxy.refuse()
    healing = threading.Timer(OUTAGE_SECONDS, proxy.heal)
    healing.start()
    with open_channel(target) as channel:
        found = call(ModelServiceStub(channel).GetProfile, GetProfileRequest(name=TEACHER), seconds=60.0)
    assert found.name == TEACHER
    healing.join()
