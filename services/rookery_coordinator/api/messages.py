"""Rows to messages, for every service of the public API."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rookery.v1 import (
    adaptation_service_pb2,
    adapter_service_pb2,
    measurement_pb2,
    model_service_pb2,
    recipe_pb2,
    run_service_pb2,
)
from rookery_coordinator import aliases, report, tables
from rookery_coordinator.database import now
from rookery_coordinator.identifiers import policy_name
from rookery_coordinator.inventory import Kind, Step
from rookery_coordinator.types import (
    ENDED_TRIAL_STATES,
    AdaptationPlan,
    Grpo,
    JobKind,
    Keep,
    Purpose,
    RestEm,
    Reward,
    Role,
    RunPlan,
    SeedAllocation,
    Split,
    State,
    TrialState,
)
from rookery_coordinator.works import Work, limits_of, plan_of, to_context, to_training
from rookery_shared.types import Context
from rookery_shared.wire import recipe_to_proto, sampling_to_proto, training_to_proto

FINDINGS = {kind: adapter_service_pb2.StoreFinding.Kind.Value(f"KIND_{kind.name}") for kind in Kind}
ROLES = {Role.TEACHER: model_service_pb2.ROLE_TEACHER, Role.STUDENT: model_service_pb2.ROLE_STUDENT}
GRADERS = {
    Reward.EXACT: recipe_pb2.GRADER_EXACT,
    Reward.F1: recipe_pb2.GRADER_F1,
    Reward.CONTAINS: recipe_pb2.GRADER_CONTAINS,
    Reward.LOGLIK: recipe_pb2.GRADER_LOGLIK,
    Reward.MATCH: recipe_pb2.GRADER_MATCH,
    Reward.JUDGE: recipe_pb2.GRADER_JUDGE,
    Reward.CELLS: recipe_pb2.GRADER_CELLS,
    Reward.LIKELIHOOD: recipe_pb2.GRADER_LIKELIHOOD,
}
KEEP = {
    Keep.BEST: run_service_pb2.RestEm.KEEP_BEST,
    Keep.GAINING: run_service_pb2.RestEm.KEEP_GAINING,
}
ALLOCATIONS = {
    SeedAllocation.FIXED: run_service_pb2.RunPlan.SEED_ALLOCATION_FIXED,
    SeedAllocation.RACE: run_service_pb2.RunPlan.SEED_ALLOCATION_RACE,
}
_STATES = {
    State.WAITING: adaptation_service_pb2.STATE_UNSPECIFIED,
    State.RUNNING: adaptation_service_pb2.STATE_RUNNING,
    State.PAUSED: adaptation_service_pb2.STATE_PAUSED,
    State.SUCCEEDED: adaptation_service_pb2.STATE_SUCCEEDED,
    State.FAILED: adaptation_service_pb2.STATE_FAILED,
    State.CANCELLED: adaptation_service_pb2.STATE_CANCELLED,
}
_PURPOSES = {
    Purpose.BASELINE: run_service_pb2.Round.PURPOSE_BASELINE,
    Purpose.TRAIN: run_service_pb2.Round.PURPOSE_TRAIN,
    Purpose.TEST: run_service_pb2.Round.PURPOSE_TEST,
    Purpose.CONTROL: run_service_pb2.Round.PURPOSE_CONTROL,
    Purpose.ADAPT: run_service_pb2.Round.PURPOSE_ADAPT,
}


def timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return message


def profile_message(profile: tables.Profile) -> model_service_pb2.Profile:
    limits = limits_of(profile)
    return model_service_pb2.Profile(
        name=profile.name,
        role=ROLES[profile.role],
        model=model_service_pb2.ModelSource(source=profile.source, revision=profile.revision),
        engine=profile.engine,
        dtype=profile.dtype,
        chat=profile.chat,
        limits=model_service_pb2.Limits(
            max_passage_characters=limits.max_passage_characters,
            max_new_tokens=limits.max_new_tokens,
            max_lora_rank=limits.max_lora_rank,
            trials_per_job=limits.trials_per_job,
        ),
        active_policy=policy_name(profile.name, profile.active_policy) if profile.role == Role.TEACHER else "",
        create_time=timestamp(profile.create_time),
    )


def policy_message(policy: tables.Policy) -> model_service_pb2.Policy:
    return model_service_pb2.Policy(
        name=policy_name(policy.profile, policy.version),
        adapter=policy.adapter or "",
        run=policy.run or "",
        create_time=timestamp(policy.create_time),
    )


def measurement_message(measured: report.Measurement | None) -> measurement_pb2.Measurement | None:
    if measured is None:
        return None
    return measurement_pb2.Measurement(
        name=measured.name, mean=measured.mean, standard_error=measured.standard_error, n=measured.n
    )


def adapter_message(session: Session, adapter: tables.Adapter, *, full: bool) -> adapter_service_pb2.Adapter:
    """`full` adds the loss curve."""
    training = to_training(adapter.training)
    return adapter_service_pb2.Adapter(
        name=adapter.name,
        profile=adapter.profile,
        parent=adapter.parent,
        base_model=adapter.base_model,
        rank=adapter.rank,
        size_bytes=adapter.size_bytes,
        gain=measurement_message(aliases.adapter_gain(session, adapter)),
        aliases=aliases.aliases_of(session, adapter),
        create_time=timestamp(adapter.create_time),
        training=training_to_proto(training if full else replace(training, losses=())),
    )


def step_message(step: Step) -> adapter_service_pb2.VerifyStoreResponse:
    message = adapter_service_pb2.VerifyStoreResponse(checked=step.checked, total=step.total)
    if step.finding is not None:
        found = step.finding
        message.finding.CopyFrom(
            adapter_service_pb2.StoreFinding(
                kind=FINDINGS[found.kind],
                key=found.key,
                message=found.message,
                size_bytes=found.size_bytes,
                removed=found.removed,
            )
        )
    return message


def alias_message(move: tables.AliasMove) -> adapter_service_pb2.Alias:
    name = f"{move.profile}/aliases/{move.alias}"
    return adapter_service_pb2.Alias(name=name, adapter=move.adapter, version=move.version)


def progress_message(session: Session, work: Work) -> measurement_pb2.Progress:
    """Trials done of all that the plan will make at most, and the time left at the rate so far."""
    rounds = session.scalars(select(tables.Round).where(tables.Round.parent == work.name)).all()
    made = dict(
        session.execute(
            select(tables.Trial.round, func.count())
            .where(tables.Trial.round.in_([r.id for r in rounds]))
            .group_by(tables.Trial.round)
        ).all()
    )
    planned = {r.id: r.contexts * r.self_edits * r.seeds for r in rounds}
    total = sum(made.get(r.id, 0) if r.state is State.SUCCEEDED else planned[r.id] for r in rounds)
    query = (
        select(tables.Trial.state, func.count())
        .join(tables.Round, tables.Round.id == tables.Trial.round)
        .where(tables.Round.parent == work.name)
        .group_by(tables.Trial.state)
    )
    counts = dict(session.execute(query).all())
    done = sum(counts.get(state, 0) for state in ENDED_TRIAL_STATES)
    progress = measurement_pb2.Progress(
        trials_done=done,
        trials_failed=counts.get(TrialState.FAILED, 0),
        trials_total=total,
        stage=_stage(session, work),
    )
    if done and work.state is State.RUNNING:
        elapsed = (session.scalar(select(now())) or 0.0) - work.create_time
        progress.eta.CopyFrom(Duration(seconds=int(elapsed / done * (total - done))))
    return progress


def _stage(session: Session, work: Work) -> str:
    """The kinds of jobs that are open, such as "train, evaluate"."""
    if work.state.ended or work.state is State.PAUSED:
        return work.state.value
    query = select(tables.Job.kind).where(tables.Job.parent == work.name, tables.Job.end_time.is_(None)).distinct()
    return ", ".join(sorted(session.scalars(query))) or "between rounds"


def _failure(work: Work) -> adaptation_service_pb2.Failure | None:
    if work.failure_reason is None:
        return None
    return adaptation_service_pb2.Failure(reason=work.failure_reason, message=work.failure_message or "")


def run_message(session: Session, run: tables.Run, *, full: bool) -> run_service_pb2.Run:
    """`full` adds rounds and measurements. Contexts are never sent back."""
    plan = plan_of(run)
    assert isinstance(plan, RunPlan)
    message = run_service_pb2.Run(
        name=run.name,
        teacher=run.teacher,
        student=run.student,
        domain=plan.domain,
        plan=_plan_message(plan),
        state=_STATES[run.state],
        failure=_failure(run),
        progress=progress_message(session, run),
        create_time=timestamp(run.create_time),
        end_time=timestamp(run.end_time),
    )
    if full:
        query = select(tables.Round).where(tables.Round.parent == run.name).order_by(tables.Round.position)
        message.rounds.extend(_round_message(session, run, round_) for round_ in session.scalars(query))
        rows = report.table(session, run.name)
        message.measurements.extend(
            m for measured in report.measurements(rows) if (m := measurement_message(measured)) is not None
        )
        message.comparisons.extend(
            measurement_pb2.Comparison(
                first=c.first,
                second=c.second,
                mean_difference=c.mean_difference,
                standard_error=c.standard_error,
                p_value=c.p_value,
                n=c.n,
            )
            for c in report.comparisons(rows)
        )
    return message


def _plan_message(plan: RunPlan) -> run_service_pb2.RunPlan:
    return run_service_pb2.RunPlan(
        rounds=plan.rounds,
        style=plan.style,
        self_edits=plan.self_edits,
        seeds=plan.seeds,
        test_self_edits=plan.test_self_edits,
        reward=GRADERS[plan.reward],
        keep_without_gain=plan.keep_without_gain,
        control=plan.control,
        sampling=sampling_to_proto(plan.sampling),
        student_recipe=recipe_to_proto(plan.student_recipe),
        teacher_recipe=recipe_to_proto(plan.teacher_recipe),
        seed=plan.seed,
        seed_allocation=ALLOCATIONS[plan.seed_allocation],
        race_confidence=plan.race_confidence,
        reward_shape=run_service_pb2.RunPlan.RewardShape(**asdict(plan.reward_shape)),
        redraws=plan.redraws,
        optimiser=_optimiser_message(plan.optimiser),
        baselines=plan.baselines,
        test_grader=GRADERS[plan.grader(Split.TEST)],
        test_every=plan.test_every,
    )


def _optimiser_message(optimiser: RestEm | Grpo) -> run_service_pb2.PolicyOptimiser:
    if isinstance(optimiser, RestEm):
        keep = KEEP[optimiser.keep] if optimiser.keep else run_service_pb2.RestEm.KEEP_UNSPECIFIED
        rest_em = run_service_pb2.RestEm(keep=keep, least_gain=optimiser.least_gain)
        return run_service_pb2.PolicyOptimiser(rest_em=rest_em)
    grpo = run_service_pb2.Grpo(kl_coefficient=optimiser.kl_coefficient, clip_range=optimiser.clip_range)
    return run_service_pb2.PolicyOptimiser(grpo=grpo)


def _round_message(session: Session, run: tables.Run, round_: tables.Round) -> run_service_pb2.Round:
    def count(table: type[tables.SelfEdit | tables.Trial | tables.Kept], *conditions: object) -> int:
        query = select(func.count()).select_from(table).where(table.round == round_.id, *conditions)  # type: ignore[arg-type]  # column expressions
        return session.scalar(query) or 0

    return run_service_pb2.Round(
        index=round_.position,
        purpose=_PURPOSES[round_.purpose],
        policy=policy_name(run.teacher, round_.policy) if round_.policy is not None else "",
        next_policy=policy_name(run.teacher, round_.next_policy) if round_.next_policy is not None else "",
        state=_STATES[round_.state],
        contexts=round_.contexts,
        self_edits=count(tables.SelfEdit),
        trials_done=count(tables.Trial, tables.Trial.state.in_(ENDED_TRIAL_STATES)),
        trials_failed=count(tables.Trial, tables.Trial.state == TrialState.FAILED),
        trials_refused=count(tables.Trial, tables.Trial.state == TrialState.REFUSED),
        trials_total=count(tables.Trial),
        kept=count(tables.Kept),
        gain=measurement_message(report.round_gain(session, round_.id)),
    )


def adaptation_message(
    session: Session, adaptation: tables.Adaptation, *, full: bool
) -> adaptation_service_pb2.Adaptation:
    """`full` adds the context and the answers."""
    plan = plan_of(adaptation)
    assert isinstance(plan, AdaptationPlan)
    context = session.scalar(select(tables.Context).where(tables.Context.parent == adaptation.name))
    assert context is not None
    message = _accepted(adaptation, plan, to_context(context), full=full)
    message.progress.CopyFrom(progress_message(session, adaptation))
    trial = session.get(tables.Trial, adaptation.trial) if adaptation.trial else None
    if trial is not None and trial.adapter is not None:
        _add_result(session, message, trial, reward=plan.reward, full=full)
    return message


def new_adaptation_message(
    adaptation: tables.Adaptation, plan: AdaptationPlan, context: Context
) -> adaptation_service_pb2.Adaptation:
    """Of one that was created just now: nothing of it need be looked up."""
    message = _accepted(adaptation, plan, context, full=True)
    message.progress.trials_total, message.progress.stage = plan.self_edits * plan.seeds, JobKind.GENERATE
    return message


def _accepted(
    adaptation: tables.Adaptation, plan: AdaptationPlan, context: Context, *, full: bool
) -> adaptation_service_pb2.Adaptation:
    """Without its progress and its result."""
    message = adaptation_service_pb2.Adaptation(
        name=adaptation.name,
        teacher=adaptation.teacher,
        student=adaptation.student,
        domain=plan.domain,
        style=plan.style,
        self_edits=plan.self_edits,
        seeds=plan.seeds,
        reward=GRADERS[plan.reward],
        sampling=sampling_to_proto(plan.sampling),
        recipe=recipe_to_proto(plan.student_recipe),
        seed=plan.seed,
        redraws=plan.redraws,
        state=_STATES[adaptation.state],
        failure=_failure(adaptation),
        policy=policy_name(adaptation.teacher, adaptation.policy),
        create_time=timestamp(adaptation.create_time),
        end_time=timestamp(adaptation.end_time),
    )
    message.context.title = context.title
    if full:
        message.context.passage = context.passage
        for question in context.questions:
            message.context.questions.add(question=question.question, answer=question.answer)
        for shown in context.demonstrations:
            message.context.demonstrations.add(input=shown.input, output=shown.output)
    return message


def _add_result(
    session: Session, message: adaptation_service_pb2.Adaptation, trial: tables.Trial, *, reward: Reward, full: bool
) -> None:
    assert trial.adapter is not None
    assert trial.evaluation is not None
    adapter = session.get_one(tables.Adapter, trial.adapter)
    message.adapter = adapter.name
    message.self_edit = session.get_one(tables.SelfEdit, trial.self_edit).text
    gain = measurement_message(aliases.adapter_gain(session, adapter))
    if gain is not None:
        message.gain.CopyFrom(gain)
    if not full:
        return
    for question, answered in zip(message.context.questions, trial.evaluation["questions"], strict=True):
        message.answers.add(
            question=question.question,
            gold=question.answer,
            before=answered["before"],
            after=answered["after"],
            score_before=answered["grades_before"][reward],
            score_after=answered["grades_after"][reward],
        )
