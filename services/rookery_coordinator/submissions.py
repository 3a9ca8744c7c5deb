"""Accepting work: everything is checked before anything is written, so nothing is ever half created."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rookery_coordinator.events import audit, tell
from rookery_coordinator.identifiers import adaptation_name, policy_name, run_name
from rookery_coordinator.plans import write_adaptation_round, write_run_rounds
from rookery_coordinator.policies import active_recipe
from rookery_coordinator.rounds import start_work
from rookery_coordinator.tables import Adaptation, Policy, Profile, Request, Run
from rookery_coordinator.types import AdaptationPlan, Grpo, Keep, Limits, Role, RunPlan, SeedAllocation, Split, State
from rookery_coordinator.works import add_contexts, find_profile, limits_of, plan_to_row
from rookery_shared.domains import Domain, check_style, find_domain
from rookery_shared.errors import EngineCannot, InvalidField, NameTaken, PassageTooLong, RankNotServed
from rookery_shared.types import REMOTE_ENGINE, Context, LoraRecipe

MAX_TITLE_CHARACTERS = 512
MAX_REQUEST_ID_CHARACTERS = 200
MAX_CONTEXTS = 10_000
RACING_SEEDS = 3
"""The fewest with which racing differs from fixed seeds: the first two trials go to every self-edit."""


def check_request_id(request_id: str) -> None:
    """Raises InvalidField for one that cannot be remembered."""
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS or "\0" in request_id:
        rule = f"at most {MAX_REQUEST_ID_CHARACTERS} characters, none of them NUL"
        raise InvalidField(f"request_id must have {rule}", field="request_id")


def repeated(session: Session, request_id: str) -> str | None:
    """The resource that an earlier request with this id made."""
    if not request_id:
        return None
    request = session.get(Request, request_id)
    return request.resource if request else None


def remember(session: Session, request_id: str, resource: str) -> None:
    if request_id:
        session.add(Request(id=request_id, resource=resource))


def create_profile(
    session: Session,
    *,
    name: str,
    role: Role,
    source: str,
    revision: str,
    engine: str,
    dtype: str,
    chat: bool,
    limits: Limits,
) -> Profile:
    """Raises NameTaken if another profile has the name."""
    if session.get(Profile, name) is not None:
        raise NameTaken(f"there is a profile {name} already", name=name)
    profile = Profile(
        name=name,
        role=role,
        source=source,
        revision=revision,
        engine=engine,
        dtype=dtype,
        chat=chat,
        limits=asdict(limits),
        active_policy=0,
    )
    session.add(profile)
    try:
        session.flush()
        if role is Role.TEACHER:
            session.add(Policy(profile=name, version=0))
        audit(session, "profile created", name, source=source, revision=revision)
        session.flush()
    except IntegrityError:
        raise NameTaken(f"there is a profile {name} already", name=name) from None
    return profile


def create_run(
    session: Session, *, teacher: str, student: str, plan: RunPlan, train: Sequence[Context], test: Sequence[Context]
) -> Run:
    """Check, store and start a run.

    Raises UnknownProfile, InvalidField, EmptyPassage, PassageTooLong, RankNotServed or EngineCannot.
    """
    teacher_profile, student_profile = _profiles(session, teacher, student)
    limits = limits_of(student_profile)
    if plan.rounds:
        _check_trainable(teacher_profile)
    check_style(plan.domain, plan.style, field="plan.style")
    _check_rank(plan.student_recipe, student_profile, field="plan.student_recipe.rank")
    if plan.rounds:
        _check_rank(plan.teacher_recipe, teacher_profile, field="plan.teacher_recipe.rank")
        _check_continues(session, teacher_profile, plan)
        _check_optimiser(plan)
        _check_teacher_steps(plan.teacher_recipe)
    if not train and not test:
        raise InvalidField("a run needs contexts to train or to test on", field="train_contexts")
    if plan.rounds and len(train) < plan.rounds:
        raise InvalidField(
            f"{plan.rounds} rounds need at least as many train contexts; there are {len(train)}", field="train_contexts"
        )
    if len(train) + len(test) > MAX_CONTEXTS:
        raise InvalidField(f"at most {MAX_CONTEXTS} contexts in one run", field="train_contexts")
    if plan.seed_allocation is SeedAllocation.RACE and plan.seeds < RACING_SEEDS:
        raise InvalidField(
            f"to race, plan.seeds must be at least {RACING_SEEDS}: with two trials for each none is left to move",
            field="plan.seeds",
        )
    for position, text in enumerate(plan.retention_texts):
        _check_length(text, limits, field=f"plan.retention_texts[{position}]")
    _check_reward(plan.domain, plan.reward, field="plan.reward")
    _check_reward(plan.domain, plan.grader(Split.TEST), field="plan.test_grader")
    _check_baselines(plan, test=len(test))
    domain = find_domain(plan.domain)
    for position, context in enumerate(train):
        check_context(context, domain, limits=limits, field=f"train_contexts[{position}]", needs_questions=False)
    for position, context in enumerate(test):
        check_context(context, domain, limits=limits, field=f"test_contexts[{position}]", needs_questions=True)
    run = Run(
        name=run_name(),
        teacher=teacher,
        student=student,
        policy=teacher_profile.active_policy,
        plan=plan_to_row(plan),
        state=State.RUNNING,
    )
    session.add(run)
    session.flush()
    contexts = [
        *add_contexts(session, run.name, Split.TRAIN, train),
        *add_contexts(session, run.name, Split.TEST, test),
    ]
    planned = write_run_rounds(session, run.name, plan, train=len(train), test=len(test))
    session.flush()
    tell(session, run.name, f"accepted: {len(train)} train and {len(test)} test contexts")
    start_work(session, run, planned, contexts)
    return run


def create_adaptation(
    session: Session, *, teacher: str, student: str, plan: AdaptationPlan, context: Context
) -> Adaptation:
    """Check, store and start an adaptation. Flushes nothing, so that many can be made at once.

    Raises what `create_run` raises, before it adds anything.
    """
    teacher_profile, student_profile = _profiles(session, teacher, student)
    check_style(plan.domain, plan.style, field="style")
    _check_rank(plan.student_recipe, student_profile, field="recipe.rank")
    _check_reward(plan.domain, plan.reward, field="reward")
    domain, limits = find_domain(plan.domain), limits_of(student_profile)
    check_context(context, domain, limits=limits, field="context", needs_questions=False)
    adaptation = Adaptation(
        name=adaptation_name(),
        teacher=teacher,
        student=student,
        policy=teacher_profile.active_policy,
        plan=plan_to_row(plan),
        state=State.RUNNING,
    )
    session.add(adaptation)
    contexts = add_contexts(session, adaptation.name, Split.TRAIN, [context])
    planned = write_adaptation_round(session, adaptation.name, plan)
    tell(session, adaptation.name, "accepted")
    start_work(session, adaptation, planned, contexts)
    return adaptation


def check_context(context: Context, domain: Domain, *, limits: Limits, field: str, needs_questions: bool) -> None:
    """Raises InvalidField, EmptyPassage or PassageTooLong, naming the field."""
    if not context.title.strip():
        raise InvalidField(f"{field}.title is empty", field=f"{field}.title")
    if len(context.title) > MAX_TITLE_CHARACTERS:
        raise InvalidField(f"{field}.title is over {MAX_TITLE_CHARACTERS} characters", field=f"{field}.title")
    _check_characters(context, field=field)
    domain.check(context, field=field)
    _check_length(context.passage, limits, field=f"{field}.passage")
    shown = "".join(d.input + d.output for d in context.demonstrations)
    _check_length(shown, limits, field=f"{field}.demonstrations")
    if needs_questions and not context.questions:
        raise InvalidField(f"{field} has no questions: there is nothing to measure", field=f"{field}.questions")
    for position, question in enumerate(context.questions):
        if not question.question.strip() or not question.answer.strip():
            name = f"{field}.questions[{position}]"
            raise InvalidField(f"{name} lacks its question or its answer", field=name)


def _check_characters(context: Context, *, field: str) -> None:
    """PostgreSQL keeps all characters but one."""
    shown = [text for each in context.demonstrations for text in (each.input, each.output)]
    asked = [text for each in context.questions for text in (each.question, each.answer)]
    if any("\0" in text for text in (context.title, context.passage, *shown, *asked)):
        raise InvalidField(f"{field} has a NUL character", field=field)


def _check_reward(domain: str, reward: str, *, field: str) -> None:
    known = find_domain(domain).rewards
    if reward not in known:
        raise InvalidField(f"{domain} does not pay by {reward}, but by {', '.join(known)}", field=field)


def _check_baselines(plan: RunPlan, *, test: int) -> None:
    field, known = "plan.baselines", find_domain(plan.domain).baselines
    for name in plan.baselines:
        if name not in known:
            there = f"but {', '.join(known)}" if known else "nor any other"
            raise InvalidField(f"{plan.domain} has no baseline {name!r}, {there}", field=field)
    if len({*plan.baselines}) < len(plan.baselines):
        raise InvalidField(f"{field} names one twice", field=field)
    if plan.baselines and not test:
        raise InvalidField(f"{field} are measured on test contexts, and there are none", field=field)


def _check_length(text: str, limits: Limits, *, field: str) -> None:
    if len(text) > limits.max_passage_characters:
        most = limits.max_passage_characters
        message = f"{field} has {len(text):,} characters; the student takes at most {most:,}"
        raise PassageTooLong(message, field=field)


def _profiles(session: Session, teacher: str, student: str) -> tuple[Profile, Profile]:
    return find_profile(session, teacher, role=Role.TEACHER), find_profile(session, student, role=Role.STUDENT)


def _check_trainable(teacher: Profile) -> None:
    if teacher.engine == REMOTE_ENGINE:
        raise EngineCannot(
            f"{teacher.name} is at an endpoint and cannot be trained; a run with 0 rounds measures it",
            field="plan.rounds",
            profile=teacher.name,
        )


def _check_optimiser(plan: RunPlan) -> None:
    """GRPO weighs every self-edit, and moves the tokens that the policy wrote: no others are there to be learned."""
    recipe = plan.teacher_recipe
    if not isinstance(plan.optimiser, Grpo):
        if plan.keep_without_gain and (plan.optimiser.keep is Keep.GAINING or plan.optimiser.least_gain):
            raise InvalidField("plan.keep_without_gain keeps the best, whatever it gains", field="plan.optimiser")
        return
    if plan.keep_without_gain:
        raise InvalidField("plan.keep_without_gain is for ReST-EM; GRPO weighs all self-edits", field="plan.optimiser")
    if recipe.reference_padding or recipe.end_mask or not recipe.completion_only_loss:
        raise InvalidField(
            "with GRPO the loss is on what the teacher wrote: plan.teacher_recipe can have no reference_padding, no "
            "end_mask and no loss on prompts",
            field="plan.teacher_recipe",
        )


def _check_teacher_steps(recipe: LoraRecipe) -> None:
    if recipe.max_steps:
        field = "plan.teacher_recipe.max_steps"
        raise InvalidField(f"{field} is set, but it is students whose self-edits may ask for too much", field=field)


def _check_continues(session: Session, teacher: Profile, plan: RunPlan) -> None:
    """A policy is trained further in the shape that it has."""
    recipe, made_with = plan.teacher_recipe, active_recipe(session, teacher, plan.optimiser)
    if teacher.active_policy and (recipe.rank, recipe.targets) != (made_with.rank, made_with.targets):
        raise InvalidField(
            f"{teacher.name} answers with {policy_name(teacher.name, teacher.active_policy)}, which has rank "
            f"{made_with.rank} on {', '.join(made_with.targets)}; go on with these, or activate "
            f"{policy_name(teacher.name, 0)} to start from the base model",
            field="plan.teacher_recipe",
        )


def _check_rank(recipe: LoraRecipe, profile: Profile, *, field: str) -> None:
    limit = limits_of(profile).max_lora_rank
    if recipe.rank > limit:
        raise RankNotServed(
            f"rank {recipe.rank} is over {limit}, the highest that {profile.name} serves on {profile.engine}",
            field=field,
            profile=profile.name,
        )
