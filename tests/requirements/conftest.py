"""Systems that several requirements are tested on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import database, database_url
from tests.requirements.light import Light, start_light
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import start_redis

__all__ = [
    "database",
    "database_url",
    "light",
    "light_rabbitmq",
    "light_redis",
    "rabbitmq_coordinator",
    "redis_coordinator",
    "tidy_light",
]

LIGHT = {"lease_seconds": 10.0, "forgotten_seconds": 600.0}


@pytest.fixture(scope="session")
def redis_coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Light]:
    folder = tmp_path_factory.mktemp("light-redis")
    with start_redis(folder / "redis") as redis, start_light(folder / "light", redis.url, **LIGHT) as light:
        yield light


@pytest.fixture(scope="session")
def rabbitmq_coordinator(tmp_path_factory: pytest.TempPathFactory, rabbitmq_server: RabbitMQServer) -> Iterator[Light]:
    with start_light(tmp_path_factory.mktemp("light-rabbitmq"), rabbitmq_server.make_vhost(), **LIGHT) as light:
        yield light


@pytest.fixture
def light_redis(redis_coordinator: Light) -> Iterator[Light]:
    """A coordinator on Redis, for light workers, which end with the test."""
    yield redis_coordinator
    redis_coordinator.end_workers()


@pytest.fixture
def light_rabbitmq(rabbitmq_coordinator: Light) -> Iterator[Light]:
    """The same on RabbitMQ."""
    yield rabbitmq_coordinator
    rabbitmq_coordinator.end_workers()


@pytest.fixture(params=["redis", "rabbitmq"])
def light(request: pytest.FixtureRequest) -> Light:
    """The same on either."""
    found: Light = request.getfixturevalue(f"light_{request.param}")
    return found


@pytest.fixture
def tidy_light(light_redis: Light) -> Iterator[Light]:
    """On Redis, for tests that leave jobs unfinished: they are cancelled."""
    yield light_redis
    light_redis.cancel_all()
