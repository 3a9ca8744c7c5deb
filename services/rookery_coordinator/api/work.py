"""What a claim hands to a worker: rows to the message of its kind of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from rookery.internal.v1 import job_service_pb2 as pb
from rookery_coordinator import earnings, rounds
from rookery_coordinator.api.messages import profile_message
from rookery_coordinator.optimisers import optimiser_of
from rookery_coordinator.tables import Context, Job, Round, SelfEdit, Trial
from rookery_coordinator.types import JobKind, Purpose, Reward, RunPlan
from rookery_coordinator.works import (
    find_profile,
    find_work,
    learns_context_alone,
    limits_of,
    plan_of,
    policy_adapter,
    scored_by,
    to_context,
)
from rookery_shared.domains import find_domain
from rookery_shared.seeds import derive_seed
from rookery_shared.types import BASE_ADAPTER
from rookery_shared.wire import (
    context_to_proto,
    examples_to_proto,
    gradient_to_proto,
    recipe_to_proto,
    sampling_to_proto,
)


def fill_work(session: Session, job: Job, response: pb.ClaimResponse) -> None:
    """Set the work of a claimed job."""
    _FILL[job.kind](session, job, response)


def _generate(session: Session, job: Job, response: pb.ClaimResponse) -> None:
    work, round_ = find_work(session, job.parent), session.get_one(Round, job.round)
    plan = plan_of(work)
    generate = response.generate
    generate.teacher = work.teacher
    generate.adapter = rounds.starting_adapter(session, work, round_) or BASE_ADAPTER
    generate.domain, generate.style = plan.domain, plan.style
    generate.sampling.CopyFrom(sampling_to_proto(plan.sampling))
    generate.student_recipe.CopyFrom(recipe_to_proto(plan.student_recipe))
    generate.redraws = 0 if round_.purpose is Purpose.TEST else plan.redraws
    for context_id in job.scope:
        context = session.get_one(Context, context_id)
        generate.items.add(
            context=context_to_proto(to_context(context)),
            seeds=rounds.self_edit_seeds(work, round_, context),
            question_seeds=rounds.question_seeds(work, round_, context),
        )


def _train(session: Session, job: Job, response: pb.ClaimResponse) -> None:
    """What examples are made of, not the examples: making them may take long, and a transaction is open."""
    work, round_ = find_work(session, job.parent), session.get_one(Round, job.round)
    plan = plan_of(work)
    domain = find_domain(plan.domain)
    train = response.train
    train.student.CopyFrom(profile_message(find_profile(session, work.student)))
    train.domain, train.domain_version = domain.name, domain.version
    for trial, self_edit, context in _trials(session, job):
        train.trials.add(
            id=trial.id,
            context=context_to_proto(replace(to_context(context), questions=())),
            self_edit=None if learns_context_alone(round_) else self_edit.text,
            seed=trial.seed,
            recipe=recipe_to_proto(domain.recipe(self_edit.text, plan.student_recipe)),
        )


def _evaluate(session: Session, job: Job, response: pb.ClaimResponse) -> None:
    work, round_ = find_work(session, job.parent), session.get_one(Round, job.round)
    evaluate = response.evaluate
    evaluate.student = work.student
    plan = plan_of(work)
    evaluate.domain, evaluate.judge = plan.domain, scored_by(plan, round_) is Reward.JUDGE
    evaluate.retention_texts.extend(plan.retention_texts if isinstance(plan, RunPlan) else ())
    evaluate.max_new_tokens = min(
        find_domain(plan.domain).answer_tokens, limits_of(find_profile(session, work.student)).max_new_tokens
    )
    for trial, _, context in _trials(session, job):
        evaluate.items.add(trial=trial.id, adapter=trial.adapter or "", context=context_to_proto(to_context(context)))


def _trials(session: Session, job: Job) -> list[tuple[Trial, SelfEdit, Context]]:
    """A job's trials with their self-edits and contexts, in the order of its scope."""
    query = (
        select(Trial, SelfEdit, Context)
        .join(SelfEdit, SelfEdit.id == Trial.self_edit)
        .join(Context, Context.id == SelfEdit.context)
        .where(Trial.id.in_(job.scope))
    )
    found = {trial.id: (trial, self_edit, context) for trial, self_edit, context in session.execute(query)}
    return [found[id_] for id_ in job.scope]


def _improve(session: Session, job: Job, response: pb.ClaimResponse) -> None:
    work, round_ = find_work(session, job.parent), session.get_one(Round, job.round)
    plan = plan_of(work)
    assert isinstance(plan, RunPlan)
    improve = response.improve
    improve.teacher.CopyFrom(profile_message(find_profile(session, work.teacher)))
    improve.adapter = rounds.starting_adapter(session, work, round_) or ""
    improve.recipe.CopyFrom(recipe_to_proto(plan.teacher_recipe))
    lessons = [lesson for _, lesson in earnings.lessons(session, work, round_)]
    improve.examples.extend(examples_to_proto(lesson.example for lesson in lessons))
    gradient = optimiser_of(plan).gradient(lessons)
    if gradient is not None:
        improve.policy_gradient.CopyFrom(gradient_to_proto(gradient))
    improve.seed = derive_seed(plan.seed, "improve", round_.position)


def _activate(session: Session, job: Job, response: pb.ClaimResponse) -> None:
    response.activate.teacher = job.parent
    response.activate.adapter = policy_adapter(session, job.parent, int(job.scope[0])) or BASE_ADAPTER


_FILL: dict[JobKind, Callable[[Session, Job, pb.ClaimResponse], None]] = {
    JobKind.GENERATE: _generate,
    JobKind.TRAIN: _train,
    JobKind.EVALUATE: _evaluate,
    JobKind.IMPROVE: _improve,
    JobKind.ACTIVATE: _activate,
}
