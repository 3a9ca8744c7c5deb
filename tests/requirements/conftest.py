"""Servers that the requirements' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.redis import RedisServer, start_redis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Who wants it empty wipes it."""
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server
