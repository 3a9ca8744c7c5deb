"""The checker finds nothing where nothing is wrong, and each violation that is planted."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from rookery_coordinator import results
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Job
from rookery_coordinator.types import JobKind
from rookery_shared.faults import Point
from rookery_shared.peft_format import WEIGHTS
from rookery_shared.seeds import derive_seed
from rookery_shared.store.adapters import Origin, adapter_name, publish
from rookery_shared.store.local import LocalStore
from rookery_shared.types import TrainingRecord
from tests.adapter_files import write_adapter_files
from tests.faults.checker import Evidence, Promise, check
from tests.faults.history import Event, read_transitions, record_transitions
from tests.integration.workers import Workers
from tests.integration.worlds import make_adaptation, make_profiles, make_run


class World:
    """A run and an adaptation that have ended well, and all that is known of them."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.store, self.folder = database, LocalStore(folder / "objects"), folder
        self.files = write_adapter_files(folder / "files")
        self.events: list[Event] = []
        make_profiles(database)
        record_transitions(database)
        self.accepted = [make_run(database, train=2, test=1), make_adaptation(database)]
        self.workers = Workers(database, make_adapter=self._publish)
        while messages := self.workers.messages():
            for job, epoch in messages:
                self.workers.do(job, epoch)
                self.say(Point.CLAIMED, job, epoch)
                self.say(Point.COMPLETED, job, epoch)

    def _publish(self, job: Job, what: str) -> results.TrainedAdapter:
        seed = derive_seed(0, what)
        origin = Origin(base_model="m", base_revision="", rank=8, job=job.id, epoch=job.epoch, seed=seed)
        manifest = publish(self.store, self.files, origin)
        training = TrainingRecord(losses=(1.0,), tokens=1, seconds=1.0, weight_change=1.0)
        return results.TrainedAdapter(
            name=adapter_name(manifest.digest), size_bytes=manifest.size_bytes, training=training
        )

    def say(self, point: Point, job: str, epoch: int, *, worker: str = "w") -> None:
        self.events.append(Event(time=float(len(self.events)), pid=1, point=point, job=job, epoch=epoch, worker=worker))

    def evidence(self) -> Evidence:
        return Evidence(
            database=self.database,
            store=self.store,
            accepted=self.accepted,
            transitions=read_transitions(self.database),
            events=self.events,
        )

    def sql(self, statement: str) -> None:
        with self.database.write() as session:
            session.execute(text(statement))

    def job(self, kind: JobKind = JobKind.TRAIN) -> Job:
        return next(job for job in self.evidence().jobs.values() if job.kind is kind)


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, tmp_path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    """On SQLite: what is planted is found by code that knows no database."""
    folder = tmp_path_factory.mktemp("original")
    database = Database(f"sqlite:///{folder}/rookery.db")
    migrate(database)
    return World(database, folder)


@pytest.fixture
def copied(original: World, tmp_path: Path) -> World:
    """A world of its own for each test."""
    original.database.close()
    shutil.copytree(original.folder, tmp_path / "copy")
    world = copy.copy(original)
    world.folder, world.store = tmp_path / "copy", LocalStore(tmp_path / "copy" / "objects")
    world.database = Database(f"sqlite:///{world.folder}/rookery.db")
    world.accepted, world.events = [*original.accepted], [*original.events]
    return world


def test_nothing_is_found_where_nothing_is_wrong(world: World) -> None:
    assert check(world.evidence()) == []
    assert len(world.evidence().transitions) > 100
    [*_, claimed, succeeded] = world.evidence().lives["jobs", world.job().id]
    assert (claimed.state, claimed.epoch, claimed.worker) == ("running", 1, "w")
    assert replace(claimed, state="succeeded") == succeeded


def ended_twice(world: World) -> None:
    world.sql(f"UPDATE jobs SET state = 'running' WHERE id = '{world.job().id}'")
    world.sql(f"UPDATE jobs SET state = 'succeeded' WHERE id = '{world.job().id}'")


def advanced_twice(world: World) -> None:
    for state in ("running", "succeeded"):
        world.sql(f"UPDATE rounds SET state = '{state}' WHERE purpose = 'train' AND parent = '{world.accepted[0]}'")


def audited_twice(world: World) -> None:
    world.sql("INSERT INTO audit (action, subject, details) SELECT action, subject, details FROM audit")


def epoch_falls(world: World) -> None:
    world.sql(f"UPDATE transitions SET epoch = 2 WHERE name = '{world.job().id}' AND state = 'queued'")


def two_owners(world: World) -> None:
    world.say(Point.CLAIMED, world.job().id, 1, worker="somebody else")


def owner_changes(world: World) -> None:
    where = f"name = '{world.job().id}' AND state = 'succeeded'"
    world.sql(f"UPDATE transitions SET state = 'running', worker = 'x' WHERE {where}")


def job_left(world: World) -> None:
    with world.database.write() as session:
        session.add(
            Job(
                id="left", kind=JobKind.TRAIN, queue="q", parent="p", scope=[], state="queued", epoch=1, done=0, total=0
            )
        )


def message_left(world: World) -> None:
    world.sql("INSERT INTO outbox (job, epoch, queue, not_before) VALUES ('x', 1, 'q', 0)")


def forgotten(world: World) -> None:
    world.accepted.append("runs/accepted-and-gone")


def failed(world: World) -> None:
    world.sql(f"UPDATE runs SET state = 'failed' WHERE name = '{world.accepted[0]}'")


def trial_lost(world: World) -> None:
    world.sql("DELETE FROM trials WHERE id = (SELECT max(id) FROM trials)")


def trial_unscored(world: World) -> None:
    world.sql("UPDATE trials SET state = 'trained' WHERE id = (SELECT max(id) FROM trials)")


def policy_made_twice(world: World) -> None:
    world.sql("UPDATE rounds SET next_policy = 1 WHERE next_policy = 2")


def adapter_damaged(world: World) -> None:
    path = next((world.folder / "objects").rglob(WEIGHTS))
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def adapter_missing(world: World) -> None:
    for path in (world.folder / "objects").rglob("manifest.json"):
        path.unlink()


def adapter_of_another(world: World) -> None:
    world.sql(f"UPDATE adapters SET job = '{world.job(JobKind.EVALUATE).id}'")


def stale_result(world: World) -> None:
    """The row says that the second attempt ended it; the first was told that it did."""
    world.sql(f"UPDATE jobs SET epoch = 2 WHERE id = '{world.job().id}'")


def result_of_another(world: World) -> None:
    world.say(Point.COMPLETED, world.job().id, 1, worker="somebody else")


def succeeded_unclaimed(world: World) -> None:
    world.sql(f"DELETE FROM transitions WHERE name = '{world.job().id}' AND state = 'running'")


def beat_of_nobody(world: World) -> None:
    world.say(Point.BEAT, world.job().id, 7)


PLANTED: dict[Promise, list[Callable[[World], None]]] = {
    Promise.ONE_RESULT: [ended_twice, advanced_twice, audited_twice],
    Promise.EPOCHS_RISE: [epoch_falls, two_owners, owner_changes],
    Promise.NOTHING_STUCK: [job_left, message_left],
    Promise.NOTHING_LOST: [forgotten, failed, trial_lost, trial_unscored, policy_made_twice],
    Promise.ADAPTERS_VERIFY: [adapter_damaged, adapter_missing, adapter_of_another],
    Promise.NO_STALE_WRITER: [stale_result, result_of_another, succeeded_unclaimed, beat_of_nobody],
}


@pytest.mark.parametrize(
    ("promise", "plant"),
    [(promise, plant) for promise, plants in PLANTED.items() for plant in plants],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_violation_is_found(copied: World, promise: Promise, plant: Callable[[World], None]) -> None:
    plant(copied)
    found = check(copied.evidence())
    assert promise in {violation.promise for violation in found}, found
