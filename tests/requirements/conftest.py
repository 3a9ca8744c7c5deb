"""Light systems: a coordinator on SQLite and a Redis of its own, with leases of seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.requirements.light import Light, start_light
from tests.servers.redis import RedisServer

LEASE_SECONDS = 6.0


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Light]:
    """A coordinator of the module's own. Each test starts the workers that it needs, and ends them."""
    redis_server.wipe()
    with start_light(tmp_path_factory.mktemp("light"), redis_server.url, lease_seconds=LEASE_SECONDS) as started:
        yield started
