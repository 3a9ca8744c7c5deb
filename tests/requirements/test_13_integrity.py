"""Requirement 13: an adapter with one wrong byte in the store is loaded by nobody, counted and put on record.

Real services around a small model and an S3 server; what was served before is served still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import select

from rookery.errors import CallFailed
from rookery.internal.v1 import job_service_pb2
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub, add_JobServiceServicer_to_server
from rookery.transport import call, open_channel, stream
from rookery.v1 import adapter_service_pb2, evaluator_service_pb2, teacher_service_pb2
from rookery.v1.adapter_service_pb2_grpc import AdapterServiceStub, add_AdapterServiceServicer_to_server
from rookery.v1.context_pb2 import Context, Question
from rookery.v1.evaluator_service_pb2_grpc import EvaluatorServiceStub
from rookery.v1.recipe_pb2 import Sampling
from rookery.v1.teacher_service_pb2_grpc import TeacherServiceStub
from rookery_coordinator import policies
from rookery_coordinator.api.adapters import AdapterApi
from rookery_coordinator.api.base import Units
from rookery_coordinator.api.jobs import JobApi
from rookery_coordinator.database import Database
from rookery_coordinator.inventory import Inventory
from rookery_coordinator.schema import migrate
from rookery_coordinator.settings import WorkerSettings
from rookery_coordinator.tables import Adapter, AuditEntry, Job, Outbox, Policy, Profile
from rookery_coordinator.types import JobState
from rookery_coordinator.worker import Remote
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_evaluator.scoring import Evaluator
from rookery_evaluator.server import EvaluatorApi
from rookery_shared.errors import AdapterCorrupt
from rookery_shared.jobs.runner import JobRunner
from rookery_shared.peft_format import WEIGHTS
from rookery_shared.rpc.server import Servicer
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import connect_store
from rookery_teacher.server import TeacherApi
from rookery_teacher.writing import Teacher
from tests.adapter_files import write_adapter_files
from tests.integration.worlds import TEACHER, make_profiles
from tests.models import random_model, small_tokenizer
from tests.requirements.removal import Removal
from tests.requirements.serving import TIMEOUT, serve
from tests.requirements.test_14_admission import FITTING
from tests.servers.s3 import S3Server

ADAPTERS = "shared/rookery_shared/store/adapters.py"
REMOVALS = [
    Removal(
        what="digests of what is read",
        file=ADAPTERS,
        old="        if _entry(folder / entry.name) != entry:\n            raise AdapterCorrupt",
        new="        if False:\n            raise AdapterCorrupt",
        test="test_a_policy_with_a_wrong_byte_is_not_activated",
    ),
    Removal(
        what="the old policy stays until the new one answers",
        file="services/rookery_teacher/writing.py",
        old="        ref = await find_adapter(self._cache, self.engine, adapter)\n",
        new="        self.active = adapter\n        ref = await find_adapter(self._cache, self.engine, adapter)\n",
        test="test_a_policy_with_a_wrong_byte_is_not_activated",
    ),
    Removal(
        what="the entry in the audit log",
        file="services/rookery_coordinator/api/jobs.py",
        old="            integrity.record_refusal(",
        new="            (lambda *_, **__: None)(",
        test="test_a_policy_with_a_wrong_byte_is_not_activated",
    ),
    Removal(
        what="what the reason is about",
        file="shared/rookery_shared/jobs/runner.py",
        old="            metadata=error.metadata if isinstance(error, RookeryError) else None,\n",
        new="",
        test="test_a_policy_with_a_wrong_byte_is_not_activated",
    ),
    Removal(
        what="the count",
        file=ADAPTERS,
        old="            note(ADAPTERS_REFUSED, reason=error.reason)\n",
        new="",
        test="test_an_adapter_with_a_wrong_byte_is_not_scored",
    ),
    Removal(
        what="the record of a download",
        file="services/rookery_coordinator/api/adapters.py",
        old='integrity.record_refusal(session, reason, message, metadata, by="DownloadAdapter")',
        new="None",
        test="test_an_adapter_with_a_wrong_byte_is_not_downloaded",
    ),
]

CONTEXT = Context(title="T", passage="P", questions=[Question(question="Q?", answer="A")])


@dataclass
class House:
    """All services of it, and two policies of the teacher, of which the second has a wrong byte."""

    database: Database
    runner: JobRunner
    target: str
    good: str
    bad: str

    def activate(self, version: int) -> Job:
        """As SetActivePolicy does; the worker's job, when it has ended."""
        with self.database.write() as session:
            policies.set_active(session, session.get_one(Profile, TEACHER), version)
            session.flush()
            [message] = session.scalars(select(Outbox)).all()
            session.delete(message)
        self.runner.run(message.job, message.epoch)
        with self.database.read() as session:
            return session.get_one(Job, message.job)

    def recorded(self) -> list[tuple[str, str, str]]:
        with self.database.read() as session:
            entries = session.scalars(select(AuditEntry).where(AuditEntry.action == "adapter refused"))
            return [(entry.subject, entry.details["reason"], entry.details["by"]) for entry in entries]


def refused() -> float:
    return REGISTRY.get_sample_value("rookery_adapter_refused_total", {"reason": AdapterCorrupt.reason}) or 0.0


def flip_a_byte(store: ObjectStore, key: str) -> None:
    content = bytearray(store.read(key))
    content[-100] ^= 1
    store.write(key, bytes(content))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, moto_server: S3Server) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    random_model().save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    engine = TransformersEngine(ModelSource(source=str(folder / "model")))
    store = connect_store(moto_server.store_settings())
    names = []
    for fill in (b"\x3e", b"\x3f"):
        files = write_adapter_files(folder / fill.hex(), shapes=FITTING, fill=fill)
        origin = Origin(base_model=engine.identity.source, base_revision="", rank=8, job="j", epoch=1, seed=0)
        names.append(adapter_name(publish(store, files, origin).digest))
    flip_a_byte(store, f"{names[1]}/{WEIGHTS}")
    database = Database(f"sqlite:///{folder}/rookery.db")
    migrate(database)
    make_profiles(database)
    with database.write() as session:
        for version, name in enumerate(names, start=1):
            session.add(Policy(profile=TEACHER, version=version, adapter=name))
            session.add(
                Adapter(
                    name=name,
                    profile=TEACHER,
                    parent="runs/r",
                    job="j",
                    base_model="m",
                    rank=8,
                    size_bytes=1,
                    training={},
                )
            )
    with serve(*services(engine, database, store, folder)) as server, open_channel(server.target) as channel:
        remote = Remote(WorkerSettings(teacher_target=server.target, evaluator_target=server.target))
        runner = JobRunner(JobServiceStub(channel), worker="w", handlers={"activate": remote.activate})
        yield House(database, runner, server.target, *names)
    database.close()


def services(engine: TransformersEngine, database: Database, store: ObjectStore, folder: Path) -> list[Servicer]:
    """Of a teacher, an evaluator and a coordinator, each with a cache of its own."""

    def cache(name: str) -> AdapterCache:
        return AdapterCache(store, folder / name)

    units = Units(database)
    jobs = JobApi(units, lease_seconds=30.0)
    adapters = AdapterApi(units, store, cache("coordinator"), Inventory(database, store))
    return [
        TeacherApi(Teacher(engine, cache("teacher")), max_new_tokens=8).servicer(),
        EvaluatorApi(Evaluator(engine, cache("evaluator"))).servicer(),
        Servicer(
            add=lambda server: add_JobServiceServicer_to_server(jobs, server),
            descriptor=job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
        ),
        Servicer(
            add=lambda server: add_AdapterServiceServicer_to_server(adapters, server),
            descriptor=adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"],
        ),
    ]


def test_a_policy_with_a_wrong_byte_is_not_activated(house: House) -> None:
    assert house.activate(1).state is JobState.SUCCEEDED
    before = refused()
    job = house.activate(2)
    assert (job.state, job.failure_reason) == (JobState.FAILED, AdapterCorrupt.reason)
    assert refused() == before + 1
    assert (house.bad, AdapterCorrupt.reason, job.id) in house.recorded()
    with open_channel(house.target) as channel:
        stub = TeacherServiceStub(channel)
        assert call(stub.GetServingState, teacher_service_pb2.GetServingStateRequest()).active_adapter == house.good
        assignment = teacher_service_pb2.GenerateSelfEditsRequest.Assignment(context=CONTEXT, seeds=[1])
        request = teacher_service_pb2.GenerateSelfEditsRequest(
            assignments=[assignment], sampling=Sampling(max_new_tokens=2)
        )
        [text] = stream(stub.GenerateSelfEdits, request, seconds=TIMEOUT)
    assert text.adapter == house.good


def fails(ask: Callable[[], object]) -> None:
    with pytest.raises(CallFailed) as caught:
        ask()
    assert caught.value.reason == AdapterCorrupt.reason


def test_an_adapter_with_a_wrong_byte_is_not_scored(house: House) -> None:
    def score(*adapters: str) -> list[evaluator_service_pb2.ScoreResponse]:
        items = [evaluator_service_pb2.ScoreRequest.Item(adapter=name, context=CONTEXT) for name in adapters]
        request = evaluator_service_pb2.ScoreRequest(items=items, max_new_tokens=2)
        return [*stream(EvaluatorServiceStub(channel).Score, request, seconds=TIMEOUT)]

    before = refused()
    with open_channel(house.target) as channel:
        fails(lambda: score(house.good, house.bad))
        assert refused() == before + 1
        assert [response.adapter for response in score(house.good)] == [house.good]


def test_an_adapter_with_a_wrong_byte_is_not_downloaded(house: House) -> None:
    def download(name: str) -> list[adapter_service_pb2.DownloadAdapterResponse]:
        request = adapter_service_pb2.DownloadAdapterRequest(name=name)
        return [*stream(AdapterServiceStub(channel).DownloadAdapter, request, seconds=TIMEOUT)]

    with open_channel(house.target) as channel:
        fails(lambda: download(house.bad))
        assert download(house.good)
    assert (house.bad, AdapterCorrupt.reason, "DownloadAdapter") in house.recorded()
