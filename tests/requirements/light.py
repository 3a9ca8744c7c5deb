"""A coordinator and light workers: real processes, a real broker, and jobs that take as long as they are told to."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from sqlalchemy import func, select

from rookery.local.broker import free_port
from rookery.local.cluster import wait_until_serving
from rookery_coordinator import submissions
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Job, Outbox, SelfEdit
from rookery_coordinator.types import AdaptationPlan, JobState, Reward
from rookery_shared.types import Context, LoraRecipe
from tests.integration.worlds import STUDENT, TEACHER, make_profiles
from tests.servers.processes import ServerProcess

SELF_EDITS = 3
PLAN = AdaptationPlan(self_edits=SELF_EDITS, seeds=2, reward=Reward.EXACT, student_recipe=LoraRecipe(rank=8, alpha=16))


@dataclass
class Worker:
    process: ServerProcess
    log: Path
    metrics_port: int

    @property
    def alive(self) -> bool:
        return self.process.alive

    def counted(self, metric: str) -> float:
        """A counter's value, as Prometheus reads it."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        page = urllib3.request("GET", url, timeout=10.0, retries=3).data.decode()
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.split()[0] == metric)


@dataclass
class Light:
    folder: Path
    database: Database
    broker_url: str
    environment: dict[str, str]
    processes: list[ServerProcess] = field(default_factory=list)

    # --- processes ------------------------------------------------------------------------------------------------

    def start_worker(
        self,
        *,
        slots: int = 1,
        broker_url: str = "",
        module: str = "tests.requirements.light_worker",
        **settings: Any,
    ) -> Worker:
        """`settings` are those of the light worker, without its prefix."""
        number, port = len(self.processes), free_port()
        log = self.folder / f"worker-{number}.log"
        told = {f"ROOKERY_LIGHT_{name.upper()}": _text(value) for name, value in {"slots": slots, **settings}.items()}
        environment = {
            **self.environment,
            **told,
            "ROOKERY_BROKER_URL": broker_url or self.broker_url,
            "ROOKERY_METRICS_PORT": str(port),
        }
        argv = [sys.executable, "-m", module]
        self.processes.append(ServerProcess(argv, log=log, env=environment))
        return Worker(process=self.processes[-1], log=log, metrics_port=port)

    # --- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, *what: float | str) -> list[str]:
        """A job for each duration, or for each title. Returns their ids."""
        jobs = []
        for each in what:
            with self.database.write() as session:
                title = each if isinstance(each, str) else f"{each} seconds"
                context = Context(title=title, passage="Zzz.")
                adaptation = submissions.create_adaptation(
                    session, teacher=TEACHER, student=STUDENT, plan=PLAN, context=context
                )
                session.flush()
                jobs.append(session.scalars(select(Job.id).where(Job.parent == adaptation.name)).one())
        return jobs

    def states(self, jobs: list[str]) -> list[JobState]:
        with self.database.read() as session:
            return [session.get_one(Job, job).state for job in jobs]

    def finish(self, jobs: list[str], *, seconds: float) -> None:
        """Wait until they have succeeded."""
        until(
            lambda: all(state is JobState.SUCCEEDED for state in self.states(jobs)),
            seconds=seconds,
            what=lambda: f"all succeed: {self.states(jobs)}",
        )

    def epochs(self, jobs: list[str]) -> list[int]:
        with self.database.read() as session:
            return [session.get_one(Job, job).epoch for job in jobs]

    def self_edits(self) -> int:
        """What all jobs together have left in the rows."""
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(SelfEdit).where(SelfEdit.text != "")) or 0

    def announce_again(self, jobs: list[str]) -> None:
        """Messages as the jobs' first ones, whatever has become of the jobs."""
        with self.database.write() as session:
            for job in jobs:
                session.add(Outbox(job=job, epoch=1, queue=session.get_one(Job, job).queue, not_before=0.0))

    def unsent(self) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(Outbox)) or 0

    def journal(self, what: str = "started") -> list[dict[str, Any]]:
        """What the workers did."""
        path = self.folder / "journal"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["what"] == what]

    def starts(self, job: str) -> int:
        return sum(entry["job"] == job for entry in self.journal())


@contextmanager
def start_light(folder: Path, broker_url: str, **settings: Any) -> Iterator[Light]:
    """A coordinator on SQLite. `settings` are its own, without their prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{folder}/rookery.db")
    migrate(database)
    make_profiles(database)
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **{f"ROOKERY_{name.upper()}": str(value) for name, value in settings.items()},
        "ROOKERY_BROKER_URL": broker_url,
        "ROOKERY_DATABASE_URL": f"sqlite:///{folder}/rookery.db",
        "ROOKERY_STORE_URL": f"file://{folder}/objects",
        "ROOKERY_CACHE_FOLDER": f"{folder}/cache",
        "ROOKERY_ADDRESS": address,
        "ROOKERY_COORDINATOR_TARGET": address,
        "ROOKERY_JOB_ADDRESS": f"unix:{folder}/jobs.sock",
        "ROOKERY_JOB_SERVICE_TARGET": f"unix:{folder}/jobs.sock",
        "ROOKERY_LIGHT_JOURNAL": str(folder / "journal"),
        "ROOKERY_LOG_FORMAT": "text",
    }
    light = Light(folder=folder, database=database, broker_url=broker_url, environment=environment)
    argv = [sys.executable, "-m", "rookery_coordinator", "serve"]
    light.processes.append(ServerProcess(argv, log=folder / "coordinator.log", env=environment))
    try:
        wait_until_serving(address)
        yield light
    finally:
        for process in light.processes[::-1]:
            process.end(signal.SIGKILL)
        database.close()


def until(holds: Callable[[], object], *, seconds: float, what: str | Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.05)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


os.environ.setdefault("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
