"""The round state machine: what starts when something ends.

Every function runs inside one transaction that holds the lock of its run or adaptation, so a round advances exactly
once, whichever of its jobs ends last and whatever process dies around it.

Within a round the stages overlap: self-edits are trained as soon as they are written, adapters scored as soon as they
are trained. Only `improve` waits for all rewards.

    generate ─▶ train ─▶ evaluate ─▶ (all jobs ended) ─▶ improve ─▶ succeeded
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from rookery_coordinator import earnings, leases
from rookery_coordinator.database import now, when_committed
from rookery_coordinator.events import audit, tell
from rookery_coordinator.identifiers import new_id, policy_name, recipe_digest
from rookery_coordinator.policies import adopt_if_better, next_version
from rookery_coordinator.results import Evaluated, TrainedAdapter, Written, WrittenSelfEdit
from rookery_coordinator.tables import Adaptation, Adapter, Context, Job, Kept, Policy, Round, Run, SelfEdit, Trial
from rookery_coordinator.types import (
    ENDED_TRIAL_STATES,
    OPEN_JOB_STATES,
    Failure,
    JobKind,
    Purpose,
    RunPlan,
    SeedAllocation,
    State,
    TrialState,
)
from rookery_coordinator.works import (
    Work,
    find_profile,
    find_work,
    is_of_round,
    learns_context_alone,
    limits_of,
    plan_of,
    policy_adapter,
    round_contexts,
    scored_by,
    to_context,
)
from rookery_shared import metrics
from rookery_shared.domains import find_domain
from rookery_shared.errors import NoQuestions, TrainingFailed, UnusableSelfEdits
from rookery_shared.jobs.queues import evaluate_queue, generate_queue, improve_queue, train_queue
from rookery_shared.seeds import derive_seed

T = TypeVar("T")

GENERATIONS_PER_JOB = 60
"""About this many self-edits are asked for in one job: a batch for the teacher, and a start for the students."""
LOWEST_SCORE = 0.0
"""What a self-edit of no use is worth."""
QUESTION_ATTEMPTS = 4
"""Texts that the teacher writes to find questions for a context without any."""
MAX_WRITTEN_QUESTIONS = 10
_AT_ONCE = 1_000
"""Values of a statement's list: databases have their limits."""


# --- starting --------------------------------------------------------------------------------------------------------


def start_work(session: Session, work: Work, planned: Sequence[Round], contexts: Sequence[Context]) -> None:
    """Start every round that waits for no other, of all that the work has, and of all of its contexts."""
    for round_ in planned:
        if round_.after is None:
            _start(session, work, round_, [context for context in contexts if is_of_round(context, round_)])
    if not planned:
        end_work(session, work, State.SUCCEEDED)


def _start(session: Session, work: Work, round_: Round, contexts: Sequence[Context]) -> None:
    round_.state = State.RUNNING
    round_.policy = _starting_policy(session, work, round_)
    tell(session, work.name, f"round {round_.position} ({round_.purpose.value}) started")
    match round_.purpose:
        case Purpose.BASELINE:
            _write_baseline(session, work, round_, contexts)
        case Purpose.CONTROL if round_.self_edits_from is not None:
            session.flush()
            _settle(session, work, round_)  # there is nothing to wait for
        case _:
            _enqueue_generation(session, work, round_, contexts)


def _starting_policy(session: Session, work: Work, round_: Round) -> int:
    if round_.self_edits_from is not None:
        source = session.get_one(Round, round_.self_edits_from)
        assert source.policy is not None
        return source.policy
    if round_.after is not None:
        before = session.get_one(Round, round_.after)
        assert before.next_policy is not None
        return before.next_policy
    return work.policy


def _enqueue_generation(session: Session, work: Work, round_: Round, contexts: Sequence[Context]) -> None:
    for chunk in _chunks(contexts, max(1, GENERATIONS_PER_JOB // round_.self_edits)):
        _enqueue(session, work, round_, JobKind.GENERATE, queue=generate_queue(), scope=[c.id for c in chunk])


def _enqueue(session: Session, work: Work, round_: Round, kind: JobKind, *, queue: str, scope: Sequence[str]) -> None:
    held = work.state is State.PAUSED
    new = leases.NewJob(kind=kind, queue=queue, parent=work.name, round=round_.id, scope=scope, held=held)
    leases.enqueue(session, new)


def _write_baseline(session: Session, work: Work, round_: Round, contexts: Sequence[Context]) -> None:
    """The passage alone, or self-edits of the domain's own: what the student makes of them without a teacher."""
    plan, alone = plan_of(work), learns_context_alone(round_)
    domain = find_domain(plan.domain)

    def write(context: Context, seed: int) -> WrittenSelfEdit:
        text = ""
        if not alone:
            text = domain.baseline(round_.label, to_context(context), seed=seed, recipe=plan.student_recipe)
        return WrittenSelfEdit(
            prompt="", text=text, seed=seed, truncated=False, prompt_tokens=0, completion_tokens=0, fault=""
        )

    added = [
        row
        for context in contexts
        for row in _add_self_edits(
            session, round_, context, [write(context, seed) for seed in self_edit_seeds(work, round_, context)]
        )
    ]
    _plan_trials(session, work, round_, [(row, position) for row in added for position in range(round_.seeds)])


def self_edit_seeds(work: Work, round_: Round, context: Context) -> list[int]:
    """A seed for each self-edit of a context in a round."""
    seed = plan_of(work).seed
    return [derive_seed(seed, "self-edit", round_.position, context.position, i) for i in range(round_.self_edits)]


def question_seeds(work: Work, round_: Round, context: Context) -> list[int]:
    """Seeds for the teacher's questions; none if the context has its own, or the round asks none."""
    if context.questions or not round_.seeds:
        return []
    return [derive_seed(plan_of(work).seed, "questions", context.position, i) for i in range(QUESTION_ATTEMPTS)]


# --- results of jobs -------------------------------------------------------------------------------------------------


def apply_generated(session: Session, job: Job, written: Sequence[Written]) -> None:
    """Store self-edits and plan their trials; a context without a question, not even a written one, has none.

    Whether a self-edit can be used is told, not found out here: that may take long, and a student looks again.
    """
    work, round_ = _work_of(session, job)
    added: list[SelfEdit] = []
    trials: list[tuple[SelfEdit, int]] = []
    refused: list[Trial] = []
    for context_id, item in zip(job.scope, written, strict=True):
        context = session.get_one(Context, context_id)
        if not context.questions and round_.seeds:
            context.questions = [asdict(q) for q in item.questions[:MAX_WRITTEN_QUESTIONS]]
        rows = _add_self_edits(session, round_, context, item.self_edits)
        added += rows
        if context.questions:
            for row in rows:
                positions = range(_first_trials(work, round_))
                if row.fault:
                    refused += [_refused_trial(work, round_, row, position) for position in positions]
                else:
                    trials += [(row, position) for position in positions]
        elif round_.seeds:
            tell(session, work.name, f"{context.title}: the teacher wrote no question that can be read; it is left out")
    session.flush()
    session.add_all(refused)
    _plan_trials(session, work, round_, trials)
    blank, cut = sum(not row.text.strip() for row in added), sum(row.truncated for row in added)
    redrawn, useless = sum(item.redrawn for item in written), len({trial.self_edit for trial in refused})
    what = f"{len(added)} self-edits written ({blank} blank, {cut} cut, {redrawn} drawn again, {useless} of no use)"
    tell(session, work.name, f"round {round_.position}: {what}")


def _refused_trial(work: Work, round_: Round, self_edit: SelfEdit, position: int) -> Trial:
    """A trial that has ended before it began."""
    trial = Trial(
        id=new_id(),
        round=round_.id,
        self_edit=self_edit.id,
        position=position,
        seed=_trial_seed(work, position),
        recipe="",
    )
    _refuse(trial, self_edit.fault)
    return trial


def _refuse(trial: Trial, fault: str) -> None:
    trial.state, trial.failure = TrialState.REFUSED, fault
    trial.score_before = trial.score_after = LOWEST_SCORE


def _trial_seed(work: Work, position: int) -> int:
    return derive_seed(plan_of(work).seed, "trial", position)


def _first_trials(work: Work, round_: Round) -> int:
    """How many trials each self-edit has to begin with."""
    return 1 if _races(work, round_) else round_.seeds


def _races(work: Work, round_: Round) -> bool:
    plan = plan_of(work)
    is_race = isinstance(plan, RunPlan) and plan.seed_allocation is SeedAllocation.RACE
    return is_race and round_.purpose is Purpose.TRAIN


def _add_self_edits(
    session: Session, round_: Round, context: Context, written: Sequence[WrittenSelfEdit]
) -> list[SelfEdit]:
    rows = [
        SelfEdit(id=new_id(), round=round_.id, context=context.id, position=position, **asdict(self_edit))
        for position, self_edit in enumerate(written)
    ]
    session.add_all(rows)
    return rows


def _plan_trials(session: Session, work: Work, round_: Round, asked: Sequence[tuple[SelfEdit, int]]) -> None:
    """Trials of self-edits, each with its position. One whose adapter exists already goes straight to its evaluation.

    All self-edits of a work share the seeds: with the same start and order, they differ in what they teach alone.
    """
    plan, student = plan_of(work), find_profile(session, work.student)
    domain = find_domain(plan.domain)
    trials: list[Trial] = []
    for self_edit, position in asked:
        context = to_context(session.get_one(Context, self_edit.context))
        seed = _trial_seed(work, position)
        digest = recipe_digest(
            base_model=f"{student.source}@{student.revision}",
            dtype=student.dtype,
            domain=domain,
            context=context,
            self_edit=None if learns_context_alone(round_) else self_edit.text,
            recipe=domain.recipe(self_edit.text, plan.student_recipe),
            seed=seed,
        )
        trials.append(
            Trial(
                id=new_id(),
                round=round_.id,
                self_edit=self_edit.id,
                position=position,
                seed=seed,
                recipe=digest,
                state=TrialState.PLANNED,
            )
        )
    session.add_all(trials)
    session.flush()
    stored = _stored_adapters(session, {trial.recipe for trial in trials})
    for trial in trials:
        if trial.recipe in stored:
            _set_trained(trial, stored[trial.recipe])
    size = limits_of(student).trials_per_job
    planned = [trial.id for trial in trials if trial.state is TrialState.PLANNED]
    trained = [trial.id for trial in trials if trial.state is TrialState.TRAINED]
    for chunk in _chunks(planned, size):
        _enqueue_trials(session, work, round_, JobKind.TRAIN, chunk)
    for chunk in _chunks(trained, size):
        _enqueue_trials(session, work, round_, JobKind.EVALUATE, chunk)


def _stored_adapters(session: Session, recipes: set[str]) -> dict[str, Adapter]:
    """By recipe; locked, so that none expires before it is known to be in use."""
    found: dict[str, Adapter] = {}
    for some in _chunks(sorted(recipes), _AT_ONCE):
        query = select(Adapter).where(Adapter.recipe.in_(some)).order_by(Adapter.create_time)
        adapters = session.scalars(query.with_for_update(read=True))
        found.update((adapter.recipe, adapter) for adapter in adapters if adapter.recipe is not None)
    return found


def _set_trained(trial: Trial, adapter: Adapter) -> None:
    trial.state, trial.adapter, trial.training = TrialState.TRAINED, adapter.name, adapter.training


def _enqueue_trials(session: Session, work: Work, round_: Round, kind: JobKind, trials: Sequence[str]) -> None:
    queue = train_queue(work.student) if kind is JobKind.TRAIN else evaluate_queue()
    _enqueue(session, work, round_, kind, queue=queue, scope=trials)


def apply_trained(
    session: Session,
    job: Job,
    adapters: Mapping[str, TrainedAdapter],
    failures: Mapping[str, str],
    refused: Mapping[str, str],
) -> None:
    """Register the adapters of a train job's trials and have them evaluated; a trial may have failed instead.

    `refused` are those whose self-edit the student found a fault in, of which nobody had told.
    """
    work, round_ = _work_of(session, job)
    student, rank = find_profile(session, work.student), plan_of(work).student_recipe.rank
    made: list[str] = []
    for trial_id in job.scope:
        trial = session.get_one(Trial, trial_id)
        if trial_id in failures:
            trial.state, trial.failure = TrialState.FAILED, failures[trial_id]
            tell(session, work.name, f"round {round_.position}: a trial failed: {trial.failure}")
            continue
        if trial_id in refused:
            session.get_one(SelfEdit, trial.self_edit).fault = refused[trial_id]
            _refuse(trial, refused[trial_id])
            continue
        trained = adapters[trial_id]
        adapter = session.get(Adapter, trained.name)  # two equal self-edits in one job make one adapter
        adapter = adapter or Adapter(
            name=trained.name,
            profile=student.name,
            parent=work.name,
            job=job.id,
            base_model=student.source,
            rank=rank,
            size_bytes=trained.size_bytes,
            recipe=trial.recipe,
            training=asdict(trained.training),
            self_edit=trial.self_edit,
        )
        session.add(adapter)
        _set_trained(trial, adapter)
        made.append(trial_id)
    session.flush()
    if made:
        _enqueue_trials(session, work, round_, JobKind.EVALUATE, made)


def apply_evaluated(
    session: Session, job: Job, items: Sequence[Evaluated], *, base_model: str, graders: Sequence[str]
) -> None:
    """Store the scores of an evaluate job's trials: every component, and what was measured."""
    work, round_ = _work_of(session, job)
    plan = plan_of(work)
    reward, domain = scored_by(plan, round_), find_domain(plan.domain)
    for item in items:
        trial = session.get_one(Trial, item.trial)
        trial.state = TrialState.SCORED
        trial.score_before = domain.score(reward, [q.grades_before[reward] for q in item.questions])
        trial.score_after = domain.score(reward, [q.grades_after[reward] for q in item.questions])
        when_committed(session, partial(metrics.REWARDS.labels(reward=reward).observe, trial.score_after))
        trial.evaluation = {
            "base_model": base_model,
            "graders": list(graders),
            "scored_by": reward,
            "question_set": item.question_set,
            "questions": [asdict(q) for q in item.questions],
            "blank_before": item.blank_before,
            "blank_after": item.blank_after,
            "forgetting": item.forgetting,
        }
    session.flush()
    blank, asked = sum(item.blank_after for item in items), sum(len(item.questions) for item in items)
    if blank:
        tell(session, work.name, f"round {round_.position}: {blank} of {asked} answers with an adapter are blank")
    ended = select(func.count()).where(Trial.round == round_.id, Trial.state.in_(ENDED_TRIAL_STATES))
    total = select(func.count()).where(Trial.round == round_.id)
    message = f"round {round_.position}: {session.scalar(ended)} of {session.scalar(total)} trials done"
    tell(session, work.name, message)


def apply_improved(session: Session, job: Job, trained: TrainedAdapter) -> None:
    """Make the new adapter the next version of the teacher."""
    work, round_ = _work_of(session, job)
    teacher, rank = find_profile(session, work.teacher), plan_of(work).teacher_recipe.rank  # type: ignore[union-attr]  # only runs improve
    version = next_version(session, teacher)  # locks the teacher, as the adapter's row does in part
    session.add(
        Adapter(
            name=trained.name,
            profile=teacher.name,
            parent=work.name,
            job=job.id,
            base_model=teacher.source,
            rank=rank,
            size_bytes=trained.size_bytes,
            training=asdict(trained.training),
        )
    )
    session.add(Policy(profile=teacher.name, version=version, adapter=trained.name, run=work.name))
    round_.next_policy = version
    name = policy_name(teacher.name, version)
    audit(session, "policy made", name, run=work.name, round=round_.position, adapter=trained.name)
    tell(session, work.name, f"round {round_.position}: made {name}")


def job_ended(session: Session, job: Job) -> None:
    """After a job's result is applied: advance its round if that was its last."""
    if job.round is None:
        return
    work, round_ = _work_of(session, job)
    session.flush()
    _settle(session, work, round_)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _work_of(session: Session, job: Job) -> tuple[Work, Round]:
    assert job.round is not None
    return find_work(session, job.parent), session.get_one(Round, job.round)


# --- advancing -------------------------------------------------------------------------------------------------------


def _settle(session: Session, work: Work, round_: Round) -> None:
    """If no job of the round is open, take its next step."""
    is_open = select(func.count()).where(Job.round == round_.id, Job.state.in_(OPEN_JOB_STATES))
    if round_.state is not State.RUNNING or session.scalar(is_open):
        return
    failure = _failure_of_all(session, round_)
    if failure is not None:
        end_work(session, work, State.FAILED, failure)
        return
    if round_.next_policy is None and _races(work, round_) and _race_on(session, work, round_):
        return
    if round_.purpose is Purpose.CONTROL and _waits_for_questions(session, round_):
        return
    if round_.purpose in (Purpose.TRAIN, Purpose.CONTROL) and round_.next_policy is None:
        _improve(session, work, round_)
    if round_.purpose not in (Purpose.TRAIN, Purpose.CONTROL) or round_.next_policy is not None:
        _succeed(session, work, round_)


def _failure_of_all(session: Session, round_: Round) -> Failure | None:
    """Why a round has measured nothing, if all of its trials failed, or there was no question to score any."""
    if round_.purpose is Purpose.CONTROL:
        return None
    trials = session.execute(select(Trial.state, Trial.failure).where(Trial.round == round_.id)).all()
    if not trials:
        titles = ", ".join(repr(context.title) for context in round_contexts(session, round_)[:3])
        message = f"{titles} came without questions, and the teacher wrote none that can be read; give some"
        return Failure(reason=NoQuestions.reason, message=message)
    if any(state not in (TrialState.FAILED, TrialState.REFUSED) for state, _ in trials):
        return None
    faults = [failure for state, failure in trials if state is TrialState.REFUSED]
    if faults and round_.purpose is not Purpose.ADAPT:
        return None  # that the teacher writes nothing of use is measured, and what it has to learn
    if faults:
        return Failure(reason=UnusableSelfEdits.reason, message=f"no self-edit could be used: {faults[0]}")
    return Failure(reason=TrainingFailed.reason, message=f"no adapter could be trained: {trials[0].failure}")


def _race_on(session: Session, work: Work, round_: Round) -> bool:
    """Give more trials to the self-edits that could still be the best of their contexts. False if none needs any."""
    plan = plan_of(work)
    assert isinstance(plan, RunPlan)
    asked = earnings.next_heats(session, plan, round_)
    if asked:
        _plan_trials(session, work, round_, asked)
        tell(session, work.name, f"round {round_.position}: {len(asked)} self-edits could still be the best; once more")
    return bool(asked)


def _waits_for_questions(session: Session, round_: Round) -> bool:
    """Whether contexts of a control round may still get questions: the train round of the same contexts writes them."""
    if all(context.questions for context in round_contexts(session, round_)):
        return False
    return any(not twin.state.ended for twin in _of_same_contexts(session, round_, Purpose.TRAIN))


def _of_same_contexts(session: Session, round_: Round, purpose: Purpose) -> Sequence[Round]:
    query = select(Round).where(
        Round.parent == round_.parent,
        Round.purpose == purpose,
        Round.split == round_.split,
        Round.first_context == round_.first_context,
    )
    return session.scalars(query).all()


def _improve(session: Session, work: Work, round_: Round) -> None:
    """Choose the self-edits to train on; without any, the policy stays as it is."""
    kept = [self_edit.id for self_edit, _ in earnings.lessons(session, work, round_)]
    session.add_all(Kept(round=round_.id, self_edit=self_edit) for self_edit in kept)
    audit(session, "self-edits kept", work.name, round=round_.position, kept=kept)
    if not kept:
        tell(session, work.name, f"round {round_.position}: no self-edit to learn from; the policy stays")
        round_.next_policy = round_.policy
        return
    tell(session, work.name, f"round {round_.position}: {len(kept)} self-edits of {round_.contexts} contexts kept")
    _enqueue(session, work, round_, JobKind.IMPROVE, queue=improve_queue(work.teacher), scope=kept)


def starting_adapter(session: Session, work: Work, round_: Round) -> str | None:
    """The adapter of the policy that a round starts from; None for the base."""
    assert round_.policy is not None
    return policy_adapter(session, work.teacher, round_.policy)


def _succeed(session: Session, work: Work, round_: Round) -> None:
    round_.state = State.SUCCEEDED
    _observe(session, round_)
    tell(session, work.name, f"round {round_.position} ({round_.purpose.value}) done")
    if isinstance(work, Adaptation):
        _choose_adapter(session, work, round_)
    session.flush()
    for following in session.scalars(select(Round).where(Round.after == round_.id).order_by(Round.position)):
        _start(session, work, following, round_contexts(session, following))
    if round_.purpose is Purpose.TRAIN:
        for control in _of_same_contexts(session, round_, Purpose.CONTROL):
            _settle(session, work, control)
    _end_if_over(session, work)


def _observe(session: Session, round_: Round) -> None:
    """How long it took, if it had any jobs."""
    seconds = session.scalar(select(now() - func.min(Job.queue_time)).where(Job.round == round_.id))
    if seconds is not None:
        measure = metrics.ROUND_DURATION.labels(purpose=round_.purpose.value).observe
        when_committed(session, partial(measure, seconds))


def _choose_adapter(session: Session, work: Adaptation, round_: Round) -> None:
    chosen = earnings.best_trial(session, work, round_)
    work.trial = chosen.id
    audit(session, "adapter chosen", work.name, adapter=chosen.adapter, self_edit=chosen.self_edit)


def _end_if_over(session: Session, work: Work) -> None:
    states = session.scalars(select(Round.state).where(Round.parent == work.name)).all()
    if all(state.ended for state in states):
        end_work(session, work, State.SUCCEEDED)


# --- pausing and ending ----------------------------------------------------------------------------------------------


def pause_work(session: Session, work: Work) -> None:
    """No further job starts; those that run finish, and what follows from them waits. Only what runs can be paused."""
    if work.state is not State.RUNNING:
        return
    work.state = State.PAUSED
    leases.hold(session, work.name)
    audit(session, "work paused", work.name)
    tell(session, work.name, "paused: what runs will finish")


def resume_work(session: Session, work: Work) -> None:
    """Go on where it was. Has no effect on what is not paused."""
    if work.state is not State.PAUSED:
        return
    work.state = State.RUNNING
    leases.unhold(session, work.name)
    audit(session, "work resumed", work.name)
    tell(session, work.name, "resumed")


def end_work(session: Session, work: Work, state: State, failure: Failure | None = None) -> None:
    """End a run or an adaptation, its rounds and its jobs. Has no effect on one that has ended."""
    if work.state.ended:
        return
    work.state = state
    work.end_time = now()
    if failure is not None:
        work.failure_reason, work.failure_message = failure.reason, failure.message
    for round_ in session.scalars(select(Round).where(Round.parent == work.name)):
        if not round_.state.ended:
            round_.state = state
    if state is not State.SUCCEEDED:
        leases.cancel_open(session, work.name)
    if isinstance(work, Run) and state is State.SUCCEEDED:
        adopt_if_better(session, work)
    audit(session, f"work {state.value}", work.name, reason=failure.reason if failure else None)
    tell(session, work.name, f"{state.value}" + (f": {failure.message}" if failure else ""))
