"""A worker for all kinds of jobs whose models are stand-ins, without torch. A job takes LIGHT_SECONDS.

Texts, scores and adapters come at once; the adapters are real ones in a real store.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared.domains import find_domain
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.queues import evaluate_queue, generate_queue, improve_queue, train_queue
from rookery_shared.jobs.runner import JobRunner
from rookery_shared.jobs.worker import connect_runner, run_worker
from rookery_shared.settings import ServiceSettings, StoreSettings
from rookery_shared.store.adapters import Origin, adapter_name, publish
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import connect_store
from rookery_shared.types import TrainingRecord
from rookery_shared.wire import training_to_proto
from tests.adapter_files import write_adapter_files

STEPS = 3
QUEUES = (generate_queue(), evaluate_queue(), train_queue("profiles/student"), improve_queue("profiles/teacher"))


class WorkerSettings(ServiceSettings, StoreSettings):
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
    settings = WorkerSettings()
    models = Models(connect_store(settings), seconds=float(os.environ["LIGHT_SECONDS"]))
    kinds = (models.generate, models.train, models.evaluate, models.improve, models.activate)
    return connect_runner(settings, {kind.__name__: kind for kind in kinds})


def main() -> None:
    run_worker(
        WorkerSettings(),
        service="adapting",
        queues=QUEUES,
        runner="tests.requirements.adapting_worker:build_runner",
        concurrency=2,
    )


if __name__ == "__main__":
    main()
