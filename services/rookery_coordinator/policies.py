"""Which version of a teacher new work starts from."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rookery_coordinator import leases, report
from rookery_coordinator.events import audit, tell
from rookery_coordinator.identifiers import policy_name
from rookery_coordinator.plans import BEFORE
from rookery_coordinator.tables import Policy, Profile, Round, Run
from rookery_coordinator.types import GRPO_RECIPE, TEACHER_RECIPE, Grpo, JobKind, Purpose, RestEm, Role, RunPlan
from rookery_coordinator.works import find_profile, find_run, plan_of, policy_adapter
from rookery_shared.jobs.queues import generate_queue
from rookery_shared.types import LoraRecipe


def set_active(session: Session, profile: Profile, version: int) -> None:
    """New work starts from this version; the teacher is told to have it ready. Raises UnknownResource."""
    policy_adapter(session, profile.name, version)
    if profile.active_policy == version:
        return
    audit(session, "policy activated", policy_name(profile.name, version), before=profile.active_policy)
    profile.active_policy = version
    new = leases.NewJob(
        kind=JobKind.ACTIVATE, queue=generate_queue(), parent=profile.name, round=None, scope=[str(version)]
    )
    leases.enqueue(session, new)


def active_recipe(session: Session, profile: Profile, optimiser: RestEm | Grpo) -> LoraRecipe:
    """How an optimiser trains the active policy further: as it was trained; the default for a base model.

    A policy of another optimiser keeps its shape alone.
    """
    default = GRPO_RECIPE if isinstance(optimiser, Grpo) else TEACHER_RECIPE
    policy = session.get(Policy, (profile.name, profile.active_policy))
    if policy is None or policy.run is None:
        return default
    plan = plan_of(find_run(session, policy.run))
    assert isinstance(plan, RunPlan)
    made_with = plan.teacher_recipe
    if plan.optimiser.method == optimiser.method:
        return made_with
    return replace(default, rank=made_with.rank, alpha=made_with.alpha, targets=made_with.targets)


def adopt_if_better(session: Session, run: Run) -> None:
    """At the end of a run: activate its last policy, unless the run measured that it is no better than its first."""
    last = session.scalar(
        select(Round)
        .where(Round.parent == run.name, Round.purpose == Purpose.TRAIN)
        .order_by(Round.position.desc())
        .limit(1)
    )
    if last is None or last.next_policy is None or last.next_policy == run.policy:
        return
    name = policy_name(run.teacher, last.next_policy)
    test = session.scalar(select(Round).where(Round.after == last.id, Round.purpose == Purpose.TEST))
    if test is not None:
        rows = report.table(session, run.name)
        compared = report.compare(BEFORE, test.label, rows[BEFORE], rows[test.label])
        if compared is None or compared.mean_difference <= 0:
            tell(session, run.name, f"{name} did no better than the policy before; it is not activated")
            return
    set_active(session, find_profile(session, run.teacher, role=Role.TEACHER), last.next_policy)
    tell(session, run.name, f"{name} is active now")


def next_version(session: Session, profile: Profile) -> int:
    """The number of a teacher's next policy. Locks the profile, so that two runs do not take the same.

    Rows that name the profile are added all the same.
    """
    session.execute(select(Profile.name).where(Profile.name == profile.name).with_for_update(key_share=True))
    last: int = session.scalar(select(func.max(Policy.version)).where(Policy.profile == profile.name)) or 0
    return last + 1
