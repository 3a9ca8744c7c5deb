"""A system whose models are stand-ins: the coordinator, the broker and the workers' own processes, without torch.

`python -m tests.requirements.light` is its worker for all kinds of jobs. Texts, scores and adapters come at once; the
adapters are real ones in a real store.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func, select

from rookery import Client
from rookery.internal.v1 import job_service_pb2 as pb
from rookery.local.broker import free_port
from rookery.local.cluster import DoesNotStart, wait_until_serving
from rookery.v1.context_pb2 import Question
from rookery.v1.recipe_pb2 import GRADER_EXACT
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Outbox
from rookery_shared.domains import find_domain
from rookery_shared.faults import Point
from rookery_shared.jobs.queues import evaluate_queue, generate_queue, improve_queue, train_queue
from rookery_shared.jobs.runner import JobRunner, Lease
from rookery_shared.jobs.worker import connect_runner, run_worker
from rookery_shared.settings import ServiceSettings, StoreSettings
from rookery_shared.store.adapters import Origin, adapter_name, publish
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import connect_store
from rookery_shared.types import TrainingRecord
from rookery_shared.wire import training_to_proto
from tests.adapter_files import write_adapter_files
from tests.faults.checker import Evidence, Violation, check
from tests.faults.history import Event, read_events, read_transitions, record_transitions
from tests.integration.worlds import STUDENT, TEACHER, make_profiles
from tests.servers.processes import ServerProcess

LEASE_SECONDS = 2.0
STEPS = 3


class LightSettings(ServiceSettings, StoreSettings):
    pass


class Models:
    """Stand-ins for teachers, students, evaluators and trainers."""

    def __init__(self, store: ObjectStore, *, seconds: float) -> None:
        self._store = store
        self._seconds = seconds

    def generate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        self._work(lease)
        result = pb.CompleteRequest()
        for item in claim.generate.items:
            written = result.generated.items.add()
            for seed in item.seeds:
                written.self_edits.add(prompt="p", text=f"self-edit {seed}", seed=seed, draws=1)
        return result

    def train(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        self._work(lease)
        result = pb.CompleteRequest()
        for trial in claim.train.trials:
            result.trained.adapters[trial.id].CopyFrom(self._publish(lease, claim.train.recipe.rank, trial.seed))
        return result

    def evaluate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        self._work(lease)
        result = pb.CompleteRequest()
        result.evaluated.base_model = "m"
        result.evaluated.graders[:] = find_domain(claim.evaluate.domain).graders
        for item in claim.evaluate.items:
            grades = {"exact": 1.0, "f1": 1.0, "contains": 1.0, "match": 1.0, "loglik": -1.0}
            added = result.evaluated.items.add(trial=item.trial, question_set="q")
            for _ in item.context.questions:
                before = dict.fromkeys(grades, -2.0)
                added.questions.add(before="no", after="yes", grades_before=before, grades_after=grades)
        return result

    def improve(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        self._work(lease)
        made = self._publish(lease, claim.improve.recipe.rank, claim.improve.seed)
        return pb.CompleteRequest(improved=pb.Improved(adapter=made))

    def activate(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        return pb.CompleteRequest(activated=pb.Activated())

    def _work(self, lease: Lease) -> None:
        for done in range(STEPS):
            lease.progress(done, STEPS)
            time.sleep(self._seconds / STEPS)

    def _publish(self, lease: Lease, rank: int, seed: int) -> pb.TrainedAdapter:
        with tempfile.TemporaryDirectory() as folder:
            files = write_adapter_files(Path(folder), rank=rank)
            origin = Origin(base_model="m", base_revision="", rank=rank, job=lease.job, epoch=lease.epoch, seed=seed)
            manifest = publish(self._store, files, origin)
        record = TrainingRecord(losses=(1.0,), tokens=1, seconds=1.0, weight_change=1.0)
        return pb.TrainedAdapter(
            adapter=adapter_name(manifest.digest), size_bytes=manifest.size_bytes, training=training_to_proto(record)
        )


def build_runner() -> JobRunner:
    settings = LightSettings()
    models = Models(connect_store(settings), seconds=float(os.environ["LIGHT_SECONDS"]))
    kinds = (models.generate, models.train, models.evaluate, models.improve, models.activate)
    return connect_runner(settings, {kind.__name__: kind for kind in kinds})


class LightSystem:
    """Its processes are started by the test, each with faults of its own, and stay down when they die."""

    def __init__(self, folder: Path, *, broker_url: str, database_url: str, lease_seconds: float) -> None:
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
            "ROOKERY_LEASE_SECONDS": str(lease_seconds),
            "ROOKERY_FORGOTTEN_SECONDS": "2",
            "ROOKERY_RELAY_SECONDS": "0.02",
            "ROOKERY_HISTORY": f"{folder}/history",
            "ROOKERY_LOG_FORMAT": "text",
        }
        self.store = connect_store(LightSettings(store_url=self._environment["ROOKERY_STORE_URL"]))

    # --- processes ------------------------------------------------------------------------------------------------

    def start_coordinator(self, *, faults: str = "") -> ServerProcess:
        """Waits until it serves, or has died."""
        process = self._start("coordinator", [sys.executable, "-m", "rookery_coordinator", "serve"], faults, 0.0)
        wait_for(lambda: not process.alive or self._serves(), what="a coordinator that serves")
        return process

    def _serves(self) -> bool:
        try:
            wait_until_serving(self.address, seconds=0.1)
        except DoesNotStart:
            return False
        return True

    def start_worker(self, *, faults: str = "", seconds: float = 0.0) -> ServerProcess:
        """A job takes so many seconds."""
        return self._start("worker", [sys.executable, "-m", "tests.requirements.light"], faults, seconds)

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
        evidence = self.evidence()
        return all(evidence.works[name].state.ended for name in self.accepted) and not self.waiting()

    def waiting(self) -> int:
        """Messages in the outbox."""
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(Outbox)) or 0

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
def light_system(
    folder: Path, *, broker_url: str, database_url: str = "", lease_seconds: float = LEASE_SECONDS
) -> Iterator[LightSystem]:
    """On SQLite if no database is given."""
    folder.mkdir(parents=True, exist_ok=True)
    url = database_url or f"sqlite:///{folder}/rookery.db"
    system = LightSystem(folder, broker_url=broker_url, database_url=url, lease_seconds=lease_seconds)
    try:
        yield system
    finally:
        system.close()


def wait_for(holds: Callable[[], object], *, seconds: float = 40.0, what: str) -> None:
    """Raises AssertionError, since what a requirement promises has not happened."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def died(process: ServerProcess, *, where: str) -> None:
    """Waits until a process has killed itself, as its fault says."""
    wait_for(lambda: not process.alive, what=f"its death at {where}")
    assert process.end() == -signal.SIGKILL, where


def main() -> None:
    queues = (generate_queue(), evaluate_queue(), train_queue(STUDENT), improve_queue(TEACHER))
    run_worker(
        LightSettings(),
        service="light",
        queues=queues,
        runner="tests.requirements.light:build_runner",
        concurrency=2,
    )


if __name__ == "__main__":
    main()
