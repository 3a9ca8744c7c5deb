"""A system whose models are stand-ins: the coordinator, the broker and the workers' own processes, without torch.

It does whole adaptations. Its worker for all kinds of jobs is `adapting_worker`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from sqlalchemy import func, select

from rookery import Client
from rookery.local.cluster import DoesNotStart, wait_until_serving
from rookery.local.ports import free_port
from rookery.v1.context_pb2 import Question
from rookery.v1.recipe_pb2 import GRADER_EXACT
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Adaptation, Outbox
from rookery_shared.faults import Point
from rookery_shared.settings import StoreSettings
from rookery_shared.store.connect import connect_store
from tests.faults.checker import Evidence, Violation, check
from tests.faults.history import Event, read_events, read_transitions, record_transitions
from tests.integration.worlds import STUDENT, TEACHER, make_profiles
from tests.servers.processes import ServerProcess
from tests.servers.redis import RedisServer
from tests.waiting import wait_until


class AdaptingSystem:
    """Its processes are started by the test, each with faults of its own, and stay down when they die."""

    def __init__(self, folder: Path, *, broker_url: str, database_url: str, settings: dict[str, str]) -> None:
        self.folder = folder
        self.database = Database(database_url)
        migrate(self.database)
        record_transitions(self.database)
        make_profiles(self.database)
        self.address = f"127.0.0.1:{free_port()}"
        self.accepted: list[str] = []
        self._processes: list[ServerProcess] = []
        self._environment = {
            "ROOKERY_BROKER_URL": broker_url,
            "ROOKERY_DATABASE_URL": database_url,
            "ROOKERY_STORE_URL": f"file://{folder}/objects",
            "ROOKERY_CACHE_FOLDER": f"{folder}/cache",
            "ROOKERY_COORDINATOR_TARGET": self.address,
            "ROOKERY_ADDRESS": self.address,
            "ROOKERY_JOB_ADDRESS": f"unix:{folder}/jobs.sock",
            "ROOKERY_JOB_SERVICE_TARGET": f"unix:{folder}/jobs.sock",
            "ROOKERY_LEASE_SECONDS": "2",
            "ROOKERY_FORGOTTEN_SECONDS": "4",
            "ROOKERY_RELAY_SECONDS": "0.02",
            "ROOKERY_HISTORY": f"{folder}/history",
            "ROOKERY_LOG_FORMAT": "text",
            **settings,
        }
        self.store = connect_store(StoreSettings(store_url=self._environment["ROOKERY_STORE_URL"]))

    # --- processes ------------------------------------------------------------------------------------------------

    def start_coordinator(self, *, faults: str = "") -> ServerProcess:
        """Waits until it serves, or has died."""
        process = self._start("coordinator", [sys.executable, "-m", "rookery_coordinator", "serve"], faults, 0.0)
        wait_until(lambda: not process.alive or self._serves(), what="a coordinator that serves")
        return process

    def _serves(self) -> bool:
        try:
            wait_until_serving(self.address, seconds=0.1)
        except DoesNotStart:
            return False
        return True

    def start_worker(self, *, faults: str = "", seconds: float = 0.0) -> ServerProcess:
        """A job takes so many seconds."""
        return self._start("worker", [sys.executable, "-m", "tests.requirements.adapting_worker"], faults, seconds)

    def _start(self, name: str, argv: list[str], faults: str, seconds: float) -> ServerProcess:
        armed = self.folder / f"{name}-{len(self._processes)}"
        armed.touch()
        told = {"ROOKERY_FAULTS": faults, "ROOKERY_FAULTS_WHILE": str(armed), "LIGHT_SECONDS": str(seconds)}
        environment = self._environment | told
        process = ServerProcess(argv, log=self.folder / f"{name}.log", env=environment)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            process.end(signal.SIGKILL)
        self.database.close()

    # --- work -----------------------------------------------------------------------------------------------------

    def adapt(self, *, self_edits: int = 4, seeds: int = 2) -> str:
        """An adaptation, accepted: so many trials, four in a job."""
        with Client(self.address) as client:
            adaptation = client.create_adaptation(
                teacher=TEACHER,
                student=STUDENT,
                title="A title",
                passage=f"A passage of {len(self.accepted)}.",
                questions=[Question(question="q?", answer="a")],
                self_edits=self_edits,
                seeds=seeds,
                reward=GRADER_EXACT,
                seed=len(self.accepted),
            )
        self.accepted.append(adaptation.name)
        return adaptation.name

    def ended(self) -> bool:
        """Whether all works have, and the outbox is empty."""
        with self.database.read() as session:
            states = session.scalars(select(Adaptation.state)).all()
            waiting = session.scalar(select(func.count()).select_from(Outbox))
        return all(state.ended for state in states) and not waiting

    def events(self, point: Point | None = None) -> list[Event]:
        said = read_events(self.folder / "history")
        return [event for event in said if point in (None, event.point)]

    def evidence(self) -> Evidence:
        return Evidence(
            database=self.database,
            store=self.store,
            accepted=self.accepted,
            transitions=read_transitions(self.database),
            events=self.events(),
        )

    def violations(self) -> list[Violation]:
        return check(self.evidence())


@contextmanager
def adapting_system(
    folder: Path, *, broker_url: str, database_url: str = "", **settings: str
) -> Iterator[AdaptingSystem]:
    """On SQLite if no database is given; `settings` are those of its processes."""
    folder.mkdir(parents=True, exist_ok=True)
    url = database_url or f"sqlite:///{folder}/rookery.db"
    system = AdaptingSystem(folder, broker_url=broker_url, database_url=url, settings=settings)
    try:
        yield system
    finally:
        system.close()


def own_redis(server: RedisServer) -> str:
    """The URL of an empty Redis database that only these tests use."""
    with redis.Redis(port=server.port, db=5) as client:
        client.flushdb()
    return f"{server.url.rpartition('/')[0]}/5"


def died(process: ServerProcess, *, where: str) -> None:
    """Waits until a process has killed itself, as its fault says."""
    wait_until(lambda: not process.alive, what=f"its death at {where}")
    assert process.end() == -signal.SIGKILL, where
