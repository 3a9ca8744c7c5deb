"""Reading what runs and adaptations consist of: rows to dataclasses. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from rookery_coordinator import tables
from rookery_coordinator.identifiers import new_id
from rookery_coordinator.plans import PASSAGE_ONLY
from rookery_coordinator.rewards import Measured
from rookery_coordinator.types import AdaptationPlan, Limits, Purpose, Reward, Role, RunPlan, Split, TrialState
from rookery_shared.errors import UnknownProfile, UnknownResource
from rookery_shared.types import Context, Demonstration, Question, TrainingRecord

_RUN_PLAN = TypeAdapter(RunPlan)
_ADAPTATION_PLAN = TypeAdapter(AdaptationPlan)
_LIMITS = TypeAdapter(Limits)
_TRAINING = TypeAdapter(TrainingRecord)
_PROFILES = select(tables.Profile.__table__).where(tables.Profile.name.in_(bindparam("names", expanding=True)))

Work = tables.Run | tables.Adaptation
Plan = RunPlan | AdaptationPlan


def find_run(session: Session, name: str, *, lock: bool = False) -> tables.Run:
    """Raises UnknownResource. Locked, it serialises all changes to its rounds, jobs and trials."""
    return _find(session, tables.Run, name, lock=lock)


def find_adaptation(session: Session, name: str, *, lock: bool = False) -> tables.Adaptation:
    """As `find_run`, for an adaptation."""
    return _find(session, tables.Adaptation, name, lock=lock)


def find_work(session: Session, name: str, *, lock: bool = False) -> Work:
    """A run or an adaptation, by its name."""
    return find_run(session, name, lock=lock) if name.startswith("runs/") else find_adaptation(session, name, lock=lock)


AnyWork = TypeVar("AnyWork", tables.Run, tables.Adaptation)


def _find(session: Session, table: type[AnyWork], name: str, *, lock: bool) -> AnyWork:
    # Locked, as it is now, whatever the session has read of it before.
    work = session.get(table, name, with_for_update=True, populate_existing=True) if lock else session.get(table, name)
    if work is None:
        raise UnknownResource(f"there is no {name!r}", name=name)
    return work


def plan_of(work: Work) -> Plan:
    """As the caller gave it, defaults filled in; one of a release before redraws goes on without them."""
    stored = {"redraws": 0, **work.plan}
    if isinstance(work, tables.Run):
        return _RUN_PLAN.validate_python(stored)
    return _ADAPTATION_PLAN.validate_python(stored)


def plan_to_row(plan: Plan) -> dict[str, Any]:
    """As `plan_of` reads it."""
    row: dict[str, Any] = (
        _RUN_PLAN.dump_python(plan) if isinstance(plan, RunPlan) else _ADAPTATION_PLAN.dump_python(plan)
    )
    return row


def find_profile(session: Session, name: str, *, role: Role | None = None) -> tables.Profile:
    """Raises UnknownProfile, also for a profile of another role."""
    profile = _copied_profiles(session).get(name) or session.get(tables.Profile, name)
    if profile is None or (role is not None and profile.role != role):
        what = f"{role.value} profile" if role else "profile"
        raise UnknownProfile(f"there is no {what} {name!r}", name=name)
    return profile


def copy_profiles(session: Session, names: Sequence[str]) -> None:
    """Have `find_profile` find copies of those that there are: read at once and without the ORM, to be read only."""
    copies = _copied_profiles(session)
    missing = [name for name in names if name not in copies]
    if missing:
        rows = session.connection().execute(_PROFILES, {"names": missing})
        copies.update((row.name, tables.Profile(**row._mapping)) for row in rows)


def _copied_profiles(session: Session) -> dict[str, tables.Profile]:
    copies: dict[str, tables.Profile] = session.info.setdefault("copied profiles", {})
    return copies


def limits_of(profile: tables.Profile) -> Limits:
    return _LIMITS.validate_python(profile.limits)


def to_training(stored: dict[str, Any]) -> TrainingRecord:
    """As a row of an adapter or a trial has it."""
    return _TRAINING.validate_python(stored)


def to_measured(trial: tables.Trial) -> Measured:
    """Of a trial that is scored or refused."""
    assert trial.score_before is not None
    assert trial.score_after is not None
    if trial.state is TrialState.REFUSED:
        before, after = trial.score_before, trial.score_after
        return Measured(score_before=before, score_after=after, weight_change=0.0, tokens=0, forgetting=0.0)
    assert trial.training is not None
    assert trial.evaluation is not None
    training = to_training(trial.training)
    return Measured(
        score_before=trial.score_before,
        score_after=trial.score_after,
        weight_change=training.weight_change,
        tokens=training.tokens,
        forgetting=trial.evaluation.get("forgetting", 0.0),  # trials of earlier releases have none
    )


def policy_adapter(session: Session, profile: str, version: int) -> str | None:
    """The adapter of a teacher's version; None for the base model."""
    policy = session.get(tables.Policy, (profile, version))
    if policy is None:
        raise UnknownResource(f"{profile} has no policy {version}", name=f"{profile}/policies/{version}")
    return policy.adapter


def round_contexts(session: Session, round_: tables.Round) -> Sequence[tables.Context]:
    query = (
        select(tables.Context)
        .where(
            tables.Context.parent == round_.parent,
            tables.Context.split == round_.split,
            tables.Context.position >= round_.first_context,
            tables.Context.position < round_.first_context + round_.contexts,
        )
        .order_by(tables.Context.position)
    )
    return session.scalars(query).all()


def is_of_round(context: tables.Context, round_: tables.Round) -> bool:
    """As `round_contexts` finds them."""
    last = round_.first_context + round_.contexts
    return context.split is round_.split and round_.first_context <= context.position < last


def learns_context_alone(round_: tables.Round) -> bool:
    """Whether the round's trials learn without a self-edit: those that it has are blank."""
    return round_.purpose is Purpose.BASELINE and round_.label == PASSAGE_ONLY


def scored_by(plan: Plan, round_: tables.Round) -> Reward:
    """What counts of the answers of a round's trials."""
    return plan.grader(round_.split) if isinstance(plan, RunPlan) else plan.reward


def to_context(row: tables.Context) -> Context:
    return Context(
        title=row.title,
        passage=row.passage,
        questions=tuple(Question(**q) for q in row.questions),
        demonstrations=tuple(Demonstration(**d) for d in row.demonstrations),
    )


def add_contexts(session: Session, parent: str, split: Split, contexts: Sequence[Context]) -> list[tables.Context]:
    rows = [
        tables.Context(
            id=new_id(),
            parent=parent,
            split=split,
            position=position,
            title=context.title,
            passage=context.passage,
            questions=[asdict(q) for q in context.questions],
            demonstrations=[asdict(d) for d in context.demonstrations],
        )
        for position, context in enumerate(contexts)
    ]
    session.add_all(rows)
    return rows
