"""Work is accepted while the broker is down, and done when it is back; a broker that was wiped is filled again."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from rookery import Client
from rookery_coordinator.tables import Job
from rookery_coordinator.types import JobState
from tests.integration.worlds import STUDENT, TEACHER
from tests.requirements.light import Light, start_light
from tests.requirements.removal import Removal
from tests.servers.redis import RedisServer
from tests.waiting import wait_until

REMOVALS = [
    Removal(
        what="a message leaves the outbox when the broker has it",
        file="services/rookery_coordinator/relay.py",
        old="delete(Outbox).where(Outbox.id.in_(sent))",
        new="delete(Outbox)",
        test="test_what_was_accepted_without_a_broker_runs_when_it_is_there",
    ),
    Removal(
        what="jobs whose messages are lost are announced again",
        file="services/rookery_coordinator/reaper.py",
        old="announced = leases.announce_forgotten(session, after_seconds=self._forgotten_seconds)",
        new="announced = 0",
        test="test_a_broker_that_was_wiped_is_filled_again",
    ),
]


def submit(light: Light) -> str:
    """By a call. Returns its job."""
    with Client(light.environment["ROOKERY_ADDRESS"]) as client:
        made = client.create_adaptation(teacher=TEACHER, student=STUDENT, title="0 seconds", passage="Zzz.")
    with light.database.read() as session:
        return session.scalars(select(Job.id).where(Job.parent == made.name)).one()


def test_what_was_accepted_without_a_broker_runs_when_it_is_there(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    with start_light(tmp_path / "light", redis.url, forgotten_seconds=600) as light:
        job = submit(light)
        wait_until(lambda: "broker is down" in light.coordinator.log.read_text(), seconds=30, what="it is down")
        assert light.unsent([job]) == 1
        redis.start()
        try:
            wait_until(lambda: light.unsent([job]) == 0, seconds=30, what="the message is sent")
            light.start_worker()
            light.finish([job], seconds=60)
            assert light.starts(job) == 1
        finally:
            redis.stop()


def test_a_broker_that_was_wiped_is_filled_again(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    with start_light(tmp_path / "light", redis.url, forgotten_seconds=1, lease_seconds=3) as light:
        jobs = light.submit(0.0, 0.0, 0.0)
        wait_until(lambda: light.unsent(jobs) == 0 and redis.waiting("generate") >= 3, seconds=30, what="all are sent")
        redis.wipe()
        assert light.states(jobs) == [JobState.QUEUED] * 3
        light.start_worker()
        try:
            light.finish(jobs, seconds=60)
        finally:
            redis.stop()
        assert [light.starts(job) for job in jobs] == [1, 1, 1]
