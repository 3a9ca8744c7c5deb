"""The student: makes the examples of train jobs and trains their adapters, those of several jobs together.

In the process that owns the device.
"""

from __future__ import annotations

from collections.abc import Mapping

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_shared import telemetry
from rookery_shared.domains import Domain, domain_names, find_domain
from rookery_shared.errors import OtherRules
from rookery_shared.jobs.lease import Lease
from rookery_shared.jobs.runner import Handler
from rookery_shared.types import LoraRecipe
from rookery_shared.wire import context_from_proto, examples_from_proto, recipe_from_proto
from rookery_student.settings import StudentSettings
from rookery_training.workshop import Order, Workshop


def build_handlers() -> Mapping[str, Handler]:
    """Called in that process, which loads the model at its first job."""
    settings = StudentSettings()  # type: ignore[call-arg]  # its fields come from the environment
    telemetry.configure(settings, service="student")
    return {"train": Student(Workshop(settings)).train}


class Student:
    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def train(self, claim: pb.ClaimResponse, lease: Lease) -> pb.CompleteRequest:
        """An adapter of each trial, or the reason why there is none: it failed, or its self-edit has a fault.

        Raises OtherRules, and what the workshop raises.
        """
        work, result = claim.train, pb.CompleteRequest(trained=pb.Trained())
        domain, orders = _domain(work), list[Order]()
        for trial in work.trials:
            lease.check()
            context = context_from_proto(trial.context)
            recipe = recipe_from_proto(trial.recipe, default=LoraRecipe(), field="recipe")
            if (
                domain
                and trial.HasField("self_edit")
                and (fault := domain.fault(context, trial.self_edit, recipe=recipe))
            ):
                result.trained.refused[trial.id] = fault
                continue
            order = Order(
                key=trial.id,
                examples=domain.examples(context, trial.self_edit, seed=trial.seed)
                if domain
                else examples_from_proto(trial.examples),
                recipe=recipe,
                seed=trial.seed,
            )
            orders.append(order)
        for made in self._workshop.make(lease, work.student, orders) if orders else ():
            if made.adapter is None:
                result.trained.failures[made.key] = made.failure
            else:
                result.trained.adapters[made.key].CopyFrom(made.adapter)
        return result


def _domain(work: pb.TrainWork) -> Domain | None:
    """None if the coordinator made the examples, as the release before did.

    Raises OtherRules if examples would not come out as the coordinator names them.
    """
    if not work.domain:
        return None
    domain = find_domain(work.domain) if work.domain in domain_names() else None
    if domain is None or domain.version != work.domain_version:
        has = f"version {domain.version}" if domain else "no such domain"
        raise OtherRules(
            f"the job is of version {work.domain_version} of the domain {work.domain!r}; this student has {has}",
            domain=work.domain,
        )
    return domain
