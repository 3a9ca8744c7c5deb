"""Outbox: a job and its message are committed together, and the message leaves SQL after the broker has it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from rookery_coordinator.database import Database
from rookery_coordinator.relay import BATCH, Relay
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Outbox
from rookery_shared.faults import Point
from rookery_shared.jobs.queues import evaluate_queue, generate_queue, make_app
from tests.faults.proxy import Proxy
from tests.requirements.adapting import AdaptingSystem, adapting_system, died, own_redis
from tests.requirements.light import start_light
from tests.requirements.removal import Removal
from tests.servers.postgres import make_database
from tests.servers.rabbitmq import RabbitMQServer, connect, take
from tests.servers.redis import RedisServer
from tests.waiting import wait_until

RELAY = "services/rookery_coordinator/relay.py"
REMOVALS = [
    Removal(
        what="a message leaves the outbox after it was sent",
        file=RELAY,
        old="        sent, refused = self._send(taken)\n",
        new="        self._put_down({m.id for m in taken}, [])\n        sent, refused = self._send(taken)\n",
        test="test_killed_between_commit_and_publish",
    ),
    Removal(
        what="a message that comes twice starts its job once",
        file="shared/rookery_shared/jobs/runner.py",
        old='worker = f"{self._worker}/{uuid.uuid4().hex[:8]}"',
        new="worker = self._worker",
        test="test_killed_between_publish_and_mark",
    ),
    Removal(
        what="publishing waits for the broker's confirmation",
        file="shared/rookery_shared/jobs/queues.py",
        old='"confirm_publish": True',
        new='"confirm_publish": False',
        test="test_a_message_that_rabbitmq_never_got_stays",
    ),
    Removal(
        what="every server looks into the database",
        file="services/rookery_coordinator/server.py",
        old="                _forever(measuring.measure, pause=lambda _: MEASURE_SECONDS),\n",
        new="",
        test="test_it_is_told_how_long_messages_wait_though_none_relays",
    ),
    Removal(
        what="what the broker refuses holds nothing up",
        file=RELAY,
        old="                refused.add(message.id)\n                continue\n",
        new="                raise\n",
        test="test_what_the_broker_refuses_holds_nothing_up",
    ),
    Removal(
        what="a relay marks what it has sent itself",
        file=RELAY,
        old="session.execute(delete(Outbox).where(Outbox.id.in_(sent)))",
        new="session.execute(delete(Outbox))",
        test="test_two_relays_at_once[postgresql]",
    ),
]


@pytest.fixture
def system(tmp_path: Path, redis_server: RedisServer) -> Iterator[AdaptingSystem]:
    """Nothing but the outbox announces a job."""
    with adapting_system(
        tmp_path, broker_url=own_redis(redis_server), ROOKERY_FORGOTTEN_SECONDS="600", ROOKERY_LEASE_SECONDS="10"
    ) as started:
        yield started


def finish(system: AdaptingSystem) -> None:
    """Every job ran once."""
    wait_until(system.ended, what="the end of all work")
    assert system.violations() == []
    claims = Counter((event.job, event.epoch) for event in system.events(Point.CLAIMED))
    assert {*claims.values()} == {1}
    assert {epoch for _, epoch in claims} == {1}


def test_killed_between_commit_and_publish(system: AdaptingSystem) -> None:
    coordinator = system.start_coordinator(faults="relaying=kill#1")
    system.adapt()
    died(coordinator, where="relaying")
    system.start_coordinator()
    system.start_worker()
    finish(system)


def test_killed_between_publish_and_mark(system: AdaptingSystem) -> None:
    """The message is sent twice: once more by the next coordinator."""
    coordinator = system.start_coordinator(faults="relayed=kill#1")
    system.adapt()
    died(coordinator, where="relayed")
    system.start_coordinator()
    wait_until(lambda: waiting(system.database) == 0, what="an empty outbox")
    system.start_worker(seconds=0.5)
    finish(system)


def waiting(database: Database) -> int:
    with database.read() as session:
        return len(session.scalars(select(Outbox.id)).all())


def fill(database: Database, count: int) -> set[str]:
    """Messages of that many jobs. Returns the jobs."""
    jobs = {f"job-{i}" for i in range(count)}
    with database.write() as session:
        session.add_all(Outbox(job=job, epoch=1, queue=generate_queue(), not_before=0.0) for job in jobs)
    return jobs


def relay_all(database: Database, relays: list[Relay]) -> None:
    """By all relays at once, until there is nothing more to send."""

    def work(relay: Relay) -> None:
        while waiting(database):
            relay.send_due()

    threads = [threading.Thread(target=work, args=(relay,)) for relay in relays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def jobs_of(messages: list[Any]) -> Counter[str]:
    return Counter(message.decode()[1]["job"] for message in messages)


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with this release's schema, on either server."""
    in_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/x.db" if in_file else make_database(request.getfixturevalue("postgres_url"))
    database = Database(url)
    migrate(database)
    yield database
    database.close()


def test_two_relays_at_once(either: Database, rabbitmq_server: RabbitMQServer) -> None:
    """Nothing is lost, and nothing is sent more often than there are relays; each takes a batch, and one is left."""
    url = rabbitmq_server.make_vhost()
    jobs = fill(either, 3 * BATCH)
    relay_all(either, [Relay(either, make_app(broker_url=url)) for _ in range(2)])
    sent = jobs_of(take(url, generate_queue()))
    assert {*sent} == jobs
    assert max(sent.values()) <= 2


FAULTS: list[Callable[[Proxy], object]] = [lambda proxy: proxy.truncate(3000), lambda proxy: proxy.refuse()]


@pytest.mark.parametrize("fault", FAULTS, ids=["cut in the middle of a message", "gone"])
def test_a_message_that_rabbitmq_never_got_stays(
    tmp_path: Path, rabbitmq_server: RabbitMQServer, fault: Callable[[Proxy], object]
) -> None:
    """It stays in the outbox until the broker is back, and is sent then."""
    database = Database(f"sqlite:///{tmp_path}/rookery.db")
    migrate(database)
    url = rabbitmq_server.make_vhost()
    with Proxy(f"127.0.0.1:{rabbitmq_server.port}") as proxy:
        relay = Relay(database, make_app(broker_url=url.replace(str(rabbitmq_server.port), str(proxy.port))))
        first = fill(database, 1)
        relay.send_due()
        assert {*jobs_of(take(url, generate_queue()))} == first
        jobs = fill(database, 20)
        fault(proxy)
        relay.send_due()
        arrived = {*jobs_of(take(url, generate_queue()))}
        with database.read() as session:
            kept = {*session.scalars(select(Outbox.job))}
        assert arrived | kept == jobs
        assert kept
        proxy.heal()
        relay_all(database, [relay])
        assert {*jobs_of(take(url, generate_queue()))} | arrived == jobs
    database.close()


def test_what_the_broker_refuses_holds_nothing_up(tmp_path: Path, rabbitmq_server: RabbitMQServer) -> None:
    """Somebody has made a queue of the name of one of ours, with other arguments."""
    database = Database(f"sqlite:///{tmp_path}/rookery.db")
    migrate(database)
    url = rabbitmq_server.make_vhost()
    with connect(url) as connection:
        connection.default_channel.queue_declare(generate_queue(), durable=True, auto_delete=False)
    refused = fill(database, 3)
    with database.write() as session:
        session.add_all(Outbox(job=f"other-{i}", epoch=1, queue=evaluate_queue(), not_before=0.0) for i in range(3))
    relay = Relay(database, make_app(broker_url=url))
    assert relay.send_due() == 3
    assert {*jobs_of(take(url, evaluate_queue()))} == {f"other-{i}" for i in range(3)}
    with database.read() as session:
        assert {*session.scalars(select(Outbox.job))} == refused
    assert relay.send_due() == 0, "they are not tried again at once"
    database.close()


def test_it_is_told_how_long_messages_wait_though_none_relays(tmp_path: Path) -> None:
    with start_light(tmp_path, "redis://127.0.0.1:1/0", relays=False) as light:
        told = light.coordinator.counted
        queued = 'rookery_jobs{kind="generate",queue="generate",state="queued"}'
        light.submit("0 seconds", "0 seconds")
        wait_until(lambda: told(queued) == 2, seconds=60, what="both are counted")
        assert told("rookery_outbox_pending") == 2
        assert told("rookery_outbox_age_seconds") > 0
        assert abs(time.time() - told("rookery_measured_timestamp_seconds")) < 60
        light.cancel_all()
        wait_until(lambda: told(queued) == 0, seconds=60, what="a queue without jobs is told of as empty")
