"""The teacher's trainer: makes the next policy from a round's self-edits, as the run's optimiser has chosen them.

In the process that owns the device.
"""

from __future__ import annotations

from collections.abc import Mapping

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared import telemetry
from rookery_shared.errors import TrainingFailed
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import Handler
from rookery_shared.types import LoraRecipe
from rookery_shared.wire import examples_from_proto, gradient_from_proto, recipe_from_proto
from rookery_teacher.settings import TeacherSettings
from rookery_training.workshop import Order, Workshop


def build_handlers() -> Mapping[str, Handler]:
    """Called in that process, which loads the model at its first job."""
    settings = TeacherSettings()  # type: ignore[call-arg]  # its fields come from the environment
    telemetry.configure(settings, service="trainer")
    return {"improve": Trainer(Workshop(settings)).improve}


class Trainer:
    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def improve(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        """The next policy. Raises TrainingFailed."""
        work = claim.improve
        order = Order(
            key=lease.job,
            examples=examples_from_proto(work.examples),
            recipe=recipe_from_proto(work.recipe, default=LoraRecipe(), field="recipe"),
            seed=work.seed,
            start=work.adapter,
            gradient=gradient_from_proto(work.policy_gradient) if work.HasField("policy_gradient") else None,
        )
        [made] = self._workshop.make(lease, work.teacher, [order])
        if made.adapter is None:
            raise TrainingFailed(made.failure)
        return pb.CompleteRequest(improved=pb.Improved(adapter=made.adapter))
