"""A coordinator and light workers: real processes, a real broker, and jobs that take as long as they are told to."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from sqlalchemy import func, select, update

from rookery.local.ports import free_port
from rookery_coordinator import leases, submissions
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Context, Job, Outbox, SelfEdit
from rookery_coordinator.types import OPEN_JOB_STATES, AdaptationPlan, JobState, Reward
from rookery_shared import types
from rookery_shared.types import LoraRecipe
from tests.integration.worlds import STUDENT, TEACHER, make_profiles
from tests.servers.processes import ServerProcess
from tests.waiting import wait_until

SELF_EDITS = 3
PLAN = AdaptationPlan(self_edits=SELF_EDITS, seeds=2, reward=Reward.EXACT, student_recipe=LoraRecipe(rank=8, alpha=16))


@dataclass
class Process:
    server: ServerProcess
    log: Path
    metrics_port: int

    @property
    def alive(self) -> bool:
        return self.server.alive

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
    processes: list[Process] = field(default_factory=list)

    # --- processes ------------------------------------------------------------------------------------------------

    def start_worker(
        self, *, slots: int = 1, broker_url: str = "", module: str = "tests.requirements.light_worker", **settings: Any
    ) -> Process:
        """`settings` are those of the light worker, without its prefix."""
        told = {f"ROOKERY_LIGHT_{name.upper()}": _text(value) for name, value in {"slots": slots, **settings}.items()}
        if broker_url:
            told["ROOKERY_BROKER_URL"] = broker_url
        return self.start(module, **told)

    def start(self, module: str, *arguments: str, **environment: str) -> Process:
        log, port = self.folder / f"{len(self.processes)}-{module}.log", free_port()
        told = {**self.environment, "ROOKERY_METRICS_PORT": str(port), **environment}
        server = ServerProcess([sys.executable, "-m", module, *arguments], log=log, env=told)
        self.processes.append(Process(server=server, log=log, metrics_port=port))
        return self.processes[-1]

    def end_workers(self) -> None:
        for process in self.processes[:0:-1]:
            process.server.end(signal.SIGKILL)
        del self.processes[1:]

    @property
    def coordinator(self) -> Process:
        return self.processes[0]

    # --- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, *what: float | str, queue: str = "generate") -> list[str]:
        """A job for each duration or title, all on one queue. Returns their ids."""
        jobs = []
        for each in what:
            with self.database.write() as session:
                title = each if isinstance(each, str) else f"{each} seconds"
                context = types.Context(title=title, passage="Zzz.")
                adaptation = submissions.create_adaptation(
                    session, teacher=TEACHER, student=STUDENT, plan=PLAN, context=context
                )
                session.flush()
                job = session.scalars(select(Job).where(Job.parent == adaptation.name)).one()
                session.scalars(select(Outbox).where(Outbox.job == job.id)).one().queue = job.queue = queue
                jobs.append(job.id)
        return jobs

    def cancel_all(self) -> None:
        with self.database.write() as session:
            session.execute(update(Job).where(Job.state.in_(OPEN_JOB_STATES)).values(state=JobState.CANCELLED))

    def states(self, jobs: list[str]) -> list[JobState]:
        with self.database.read() as session:
            return [session.get_one(Job, job).state for job in jobs]

    def finish(self, jobs: list[str], *, seconds: float) -> None:
        """Wait until they have succeeded."""
        wait_until(
            lambda: all(state is JobState.SUCCEEDED for state in self.states(jobs)),
            seconds=seconds,
            what=lambda: f"all succeed: {self.states(jobs)}",
        )

    def cancel(self, job: str) -> None:
        with self.database.write() as session:
            leases.cancel_open(session, session.get_one(Job, job).parent)

    def epochs(self, jobs: list[str]) -> list[int]:
        with self.database.read() as session:
            return [session.get_one(Job, job).epoch for job in jobs]

    def effects(self, jobs: list[str]) -> list[int]:
        """How many self-edits each job has left in the rows; one that took effect once has left SELF_EDITS."""
        with self.database.read() as session:
            parents = [session.get_one(Job, job).parent for job in jobs]
            count = select(func.count()).select_from(SelfEdit).join(Context, Context.id == SelfEdit.context)
            return [
                session.scalar(count.where(Context.parent == parent, SelfEdit.text != "")) or 0 for parent in parents
            ]

    def announce_again(self, jobs: list[str]) -> None:
        """Messages as the jobs' first ones, whatever has become of the jobs."""
        with self.database.write() as session:
            for job in jobs:
                session.add(Outbox(job=job, epoch=1, queue=session.get_one(Job, job).queue, not_before=0.0))

    def unsent(self, jobs: list[str]) -> int:
        """Messages of these jobs that the broker has not got."""
        with self.database.read() as session:
            return session.scalar(select(func.count()).where(Outbox.job.in_(jobs))) or 0

    def duplicates(self, jobs: list[str]) -> int:
        """Messages of these jobs that the workers dropped: somebody had claimed the job, or it had ended.

        What tests before have left with the broker is not among them.
        """
        lines = [line for process in self.processes[1:] for line in process.log.read_text().splitlines()]
        return sum("duplicate message dropped" in line and any(job in line for job in jobs) for line in lines)

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
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    light = Light(folder=folder, database=database, broker_url=broker_url, environment=environment)
    light.start("rookery_coordinator", "serve")
    try:
        light.coordinator.server.wait_until_serving(address)
        yield light
    finally:
        light.end_workers()
        light.coordinator.server.end(signal.SIGKILL)
        database.close()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
