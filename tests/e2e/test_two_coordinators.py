"""Two coordinators and three relays on one database: no job runs twice, and one of the coordinators may always die."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import func, select

from rookery import Client
from rookery.local.ports import free_port
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Adaptation
from tests.integration.worlds import STUDENT, TEACHER, make_profiles
from tests.requirements.light import Light
from tests.servers.postgres import make_database
from tests.servers.processes import ServerProcess
from tests.servers.redis import start_redis
from tests.waiting import wait_until

JOBS = 40
AWAY_SECONDS = 2.0
"""Longest that a call may fail, or take, when a coordinator dies."""


@dataclass
class Pair:
    """The coordinators, a third relay and what they share."""

    light: Light
    addresses: list[tuple[str, str]]
    """Of each coordinator: its public one and the one for workers."""
    coordinators: list[ServerProcess] = field(default_factory=list)
    processes: list[ServerProcess] = field(default_factory=list)
    """All that were started, but for workers."""

    def start(self, number: int) -> ServerProcess:
        address, job_address = self.addresses[number]
        started = self._run(f"coordinator-{number}", "serve", ROOKERY_ADDRESS=address, ROOKERY_JOB_ADDRESS=job_address)
        started.wait_until_serving(address)
        return started

    def start_relay(self) -> None:
        self._run("relay", "relay")

    def _run(self, name: str, command: str, **told: str) -> ServerProcess:
        argv = [sys.executable, "-m", "rookery_coordinator", command]
        log = self.light.folder / f"{name}.log"
        self.processes.append(ServerProcess(argv, log=log, env={**self.light.environment, **told}))
        return self.processes[-1]

    @property
    def target(self) -> str:
        return "ipv4:" + ",".join(address for address, _ in self.addresses)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    database = Database(make_database(postgres_url))
    migrate(database)
    make_profiles(database)
    addresses = [(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}") for _ in range(2)]
    with start_redis(folder / "redis") as redis:
        environment = {
            "ROOKERY_BROKER_URL": redis.url,
            "ROOKERY_DATABASE_URL": database.url,
            "ROOKERY_STORE_URL": f"file://{folder}/objects",
            "ROOKERY_CACHE_FOLDER": f"{folder}/cache",
            "ROOKERY_JOB_SERVICE_TARGET": "ipv4:" + ",".join(address for _, address in addresses),
            "ROOKERY_LIGHT_JOURNAL": str(folder / "journal"),
            "ROOKERY_LEASE_SECONDS": "30",  # nobody is to lose a job
            "ROOKERY_FORGOTTEN_SECONDS": "600",  # so that a message that nobody has sent is missed
            "ROOKERY_LOG_FORMAT": "text",
        }
        light = Light(folder=folder, database=database, broker_url=redis.url, environment=environment)
        started = Pair(light=light, addresses=addresses)
        try:
            started.coordinators += [started.start(0), started.start(1)]
            started.start_relay()
            yield started
        finally:
            for process in [*(worker.server for worker in light.processes), *started.processes]:
                process.end(signal.SIGKILL)
            database.close()


def test_no_job_published_by_two_relays_runs_twice(pair: Pair) -> None:
    pair.light.start_worker(slots=4)
    jobs = pair.light.submit(*[0.0] * JOBS)
    pair.light.finish(jobs, seconds=120)
    assert [pair.light.starts(job) for job in jobs] == [1] * JOBS
    assert pair.light.epochs(jobs) == [1] * JOBS


class Caller:
    """Creates one adaptation after the other, and looks at each."""

    def __init__(self, target: str) -> None:
        self.names: list[str] = []
        self.errors: list[str] = []
        self.longest = 0.0
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        with Client(self._target) as client:
            while not self._stop.wait(0.02):
                started = time.monotonic()
                try:
                    made = client.create_adaptation(teacher=TEACHER, student=STUDENT, title="0 seconds", passage="Zzz.")
                    assert client.get_adaptation(made.name).name == made.name
                    self.names.append(made.name)
                except Exception as error:
                    self.errors.append(repr(error))
                self.longest = max(self.longest, time.monotonic() - started)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_either_coordinator_may_die(pair: Pair) -> None:
    caller = Caller(pair.target)
    try:
        for number in range(2):
            wait_until(lambda: len(caller.names) > 5, seconds=60, what="calls are answered")
            usual, caller.longest = caller.longest, 0.0
            pair.coordinators[number].end(signal.SIGKILL)
            reached = len(caller.names) + 20
            wait_until(lambda: len(caller.names) > reached, seconds=60, what="the other one answers")  # noqa: B023
            assert caller.longest < AWAY_SECONDS + usual
            pair.coordinators[number] = pair.start(number)
            reached = len(caller.names) + 10
            wait_until(lambda: len(caller.names) > reached, seconds=60, what="calls go on")  # noqa: B023
            time.sleep(3.5)  # the longest pause before the client tries the one that is back
    finally:
        caller.stop()
    assert caller.errors == []
    with pair.light.database.read() as session:
        there = session.scalar(select(func.count()).select_from(Adaptation).where(Adaptation.name.in_(caller.names)))
    assert there == len(caller.names)
