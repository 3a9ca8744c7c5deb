"""The student: trains the adapters of train jobs, those of several jobs together.

In the process that owns the device.
"""

from __future__ import annotations

from collections.abc import Mapping

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared import log
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import Handler
from rookery_shared.types import LoraRecipe
from rookery_shared.wire import examples_from_proto, recipe_from_proto
from rookery_student.settings import StudentSettings
from rookery_training.workshop import Order, Workshop


def build_handlers() -> Mapping[str, Handler]:
    """Called in that process, which loads the model at its first job."""
    settings = StudentSettings()  # type: ignore[call-arg]  # its fields come from the environment
    log.configure(service="student", level=settings.log_level, style=settings.log_format)
    return {"train": Student(Workshop(settings)).train}


class Student:
    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def train(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        """An adapter of each trial, or the reason why there is none."""
        work = claim.train
        orders = [
            Order(
                key=trial.id,
                examples=examples_from_proto(trial.examples),
                recipe=recipe_from_proto(trial.recipe, default=LoraRecipe(), field="recipe"),
                seed=trial.seed,
            )
            for trial in work.trials
        ]
        result = pb.CompleteRequest(trained=pb.Trained())
        for made in self._workshop.make(lease, work.student, orders):
            if made.adapter is None:
                result.trained.failures[made.key] = made.failure
            else:
                result.trained.adapters[made.key].CopyFrom(made.adapter)
        return result
