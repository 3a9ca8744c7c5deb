"""The student: trains the adapters of train jobs, one for each trial."""

from __future__ import annotations

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared import log
from rookery_shared.jobs.runner import JobRunner, Lease
from rookery_shared.jobs.worker import connect_runner
from rookery_shared.types import LoraRecipe
from rookery_shared.wire import examples_from_proto, recipe_from_proto
from rookery_student.settings import StudentSettings
from rookery_training.workshop import Workshop


def build_runner() -> JobRunner:
    """Called in the worker process, which loads the model at its first job."""
    settings = StudentSettings()  # type: ignore[call-arg]  # its fields come from the environment
    log.configure(service="student", level=settings.log_level, style=settings.log_format)
    student = Student(Workshop(settings, torch_threads=settings.torch_threads))
    return connect_runner(settings, {"train": student.train})


class Student:
    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def train(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        work = claim.train
        recipe = recipe_from_proto(work.recipe, default=LoraRecipe(), field="recipe")
        result = pb.CompleteRequest()
        for done, trial in enumerate(work.trials):
            trained = self._workshop.make(
                work.student,
                examples_from_proto(trial.examples),
                recipe,
                seed=trial.seed,
                job=lease.job,
                epoch=lease.epoch,
                on_step=lease.within(done, len(work.trials)),
            )
            result.trained.adapters[trial.id].CopyFrom(trained)
        return result
