"""No lost job: wherever a worker or the coordinator is killed, what was accepted ends, with all that it planned."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rookery.errors import CallFailed
from rookery_shared.faults import Point
from tests.requirements.adapting import AdaptingSystem, adapting_system, died, own_redis
from tests.requirements.removal import Removal
from tests.servers.redis import RedisServer
from tests.waiting import wait_until

WORKER_POINTS = [
    (Point.CLAIMED, 1),
    (Point.STEP, 1),
    (Point.STEP, 3),
    (Point.BEAT, 1),
    (Point.PUBLISHING, 1),
    (Point.FILE_STORED, 1),
    (Point.FILE_STORED, 2),
    (Point.PUBLISHED, 1),
    (Point.PUBLISHED, 2),
    (Point.WORKED, 1),
    (Point.COMPLETED, 1),
]
"""A point, and which time a process is there."""
COORDINATOR_POINTS = [
    (Point.COMMITTING, 1),
    (Point.COMMITTING, 2),
    (Point.COMMITTING, 3),
    (Point.COMMITTED, 1),
    (Point.COMMITTED, 2),
    (Point.RELAYING, 1),
    (Point.RELAYED, 1),
    (Point.REAPING, 1),
    (Point.REAPED, 5),
]

REMOVALS = [
    Removal(
        what="leases run out",
        file="services/rookery_coordinator/reaper.py",
        old="for job in expired:",
        new="for job in []:",
        test="test_wherever_a_worker_is_killed",
    ),
    Removal(
        what="jobs whose message was lost are announced again",
        file="services/rookery_coordinator/reaper.py",
        old="announced = leases.announce_forgotten(session, after_seconds=self._forgotten_seconds)",
        new="announced = 0",
        test="test_a_worker_killed_with_messages_in_its_hands",
    ),
]


@pytest.fixture
def system(tmp_path: Path, redis_server: RedisServer) -> Iterator[AdaptingSystem]:
    with adapting_system(tmp_path, broker_url=own_redis(redis_server)) as started:
        yield started


def finish(system: AdaptingSystem) -> None:
    wait_until(system.ended, what="the end of all work")
    assert system.violations() == []


def test_wherever_a_worker_is_killed(system: AdaptingSystem) -> None:
    """Each of some workers is killed at a point of its own, once."""
    system.start_coordinator()
    for point, time in WORKER_POINTS:
        system.start_worker(faults=f"{point}=kill#{time}", seconds=1.0)
    for _ in range(8):
        system.adapt()
    expected = sorted(point for point, _ in WORKER_POINTS)
    wait_until(lambda: sorted(event.point for event in system.events() if event.fault) == expected, what="all deaths")
    system.start_worker()
    finish(system)


def test_a_worker_killed_with_messages_in_its_hands(system: AdaptingSystem) -> None:
    """It has taken them from the broker, and its claims come to nothing."""
    coordinator = system.start_coordinator(faults="committing=kill#2")
    worker = system.start_worker()
    with suppress(CallFailed):
        system.adapt()
    died(coordinator, where="the first claim")
    worker.end(signal.SIGKILL)
    system.start_coordinator()
    system.start_worker()
    finish(system)


@pytest.mark.parametrize(("point", "time"), COORDINATOR_POINTS, ids=str)
def test_wherever_the_coordinator_is_killed(system: AdaptingSystem, point: Point, time: int) -> None:
    coordinator = system.start_coordinator(faults=f"{point}=kill#{time}")
    worker = system.start_worker(seconds=60.0 if point is Point.REAPING else 0.0)
    with suppress(CallFailed):
        system.adapt()
    if point is Point.REAPING:
        wait_until(lambda: system.events(Point.CLAIMED), what="a claim")
        worker.end(signal.SIGKILL)
    died(coordinator, where=point)
    system.start_coordinator()
    if point is Point.REAPING:
        system.start_worker()
    if not system.evidence().works:
        system.adapt()
    finish(system)
