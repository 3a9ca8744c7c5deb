"""The round state machine on real databases: what follows from what, exactly once, whatever happens in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy import ColumnElement, func, select, text, update

from rookery.internal.v1.job_service_pb2 import ClaimResponse, CompleteRequest, Generated
from rookery_coordinator import outcomes, report, rounds
from rookery_coordinator.api.base import Units
from rookery_coordinator.api.jobs import JobApi
from rookery_coordinator.api.messages import progress_message
from rookery_coordinator.api.work import fill_work
from rookery_coordinator.database import Database, now
from rookery_coordinator.events import events_after
from rookery_coordinator.leftovers import Leftovers
from rookery_coordinator.policies import active_recipe, next_version, set_active
from rookery_coordinator.reaper import Reaper
from rookery_coordinator.submissions import create_adaptation
from rookery_coordinator.tables import (
    Adaptation,
    Adapter,
    AuditEntry,
    Base,
    Context,
    Event,
    Job,
    Kept,
    Outbox,
    Policy,
    Profile,
    Round,
    Run,
    SelfEdit,
    Trial,
)
from rookery_coordinator.types import (
    GRPO_RECIPE,
    AdaptationPlan,
    Failure,
    Grpo,
    JobKind,
    JobState,
    Purpose,
    RestEm,
    Reward,
    RewardShape,
    RunPlan,
    SeedAllocation,
    Split,
    State,
    TrialState,
)
from rookery_coordinator.works import find_profile, find_run, find_work, plan_of
from rookery_shared.errors import InvalidField, JobNotQueued, StaleEpoch
from rookery_shared.store.local import LocalStore
from rookery_shared.types import Context as TaughtContext
from rookery_shared.types import LoraRecipe, Question
from tests.integration.workers import Workers
from tests.integration.worlds import PLAN, STUDENT, TEACHER, make_adaptation, make_profiles, make_run, some_contexts

TRIALS = 2 * (2 * 3 * 2) + 5 * 3
"""Two train rounds of 2 contexts x 3 self-edits x 2 seeds; baseline and four tests of 3 contexts."""


@pytest.fixture
def workers(database: Database) -> Workers:
    make_profiles(database)
    return Workers(database)


def count(database: Database, table: type[Base], *conditions: ColumnElement[bool]) -> int:
    with database.read() as session:
        query = select(func.count()).select_from(table).where(*conditions)
        return session.scalars(query).one()


def test_a_run_goes_through_all_of_its_rounds(database: Database, workers: Workers) -> None:
    name = make_run(database)
    workers.run_all()
    with database.read() as session:
        run = find_run(session, name)
        assert run.state is State.SUCCEEDED
        assert run.end_time is not None
        states = session.scalars(select(Round.state).where(Round.parent == name)).all()
        assert set(states) == {State.SUCCEEDED}
        assert len(states) == 9
    assert count(database, Trial) == count(database, Trial, Trial.state == TrialState.SCORED) == TRIALS
    assert count(database, Job, Job.state != JobState.SUCCEEDED) == 0
    assert count(database, Outbox) == 0


def test_test_contexts_may_be_scored_by_another_grader(database: Database, workers: Workers) -> None:
    name = make_run(database, replace(PLAN, reward=Reward.LOGLIK, test_grader=Reward.EXACT))
    workers.run_all()
    query = select(Round.split, Trial.score_before).join(Round, Round.id == Trial.round).distinct()
    with database.read() as session:
        assert {(split, before) for split, before in session.execute(query)} == {(Split.TRAIN, -2.0), (Split.TEST, 0.0)}
        base, *_ = report.measurements(report.table(session, name))
        assert (base.name, base.mean) == ("base", 0.0)
        scored_by = {trial.evaluation["scored_by"] for trial in session.scalars(select(Trial)) if trial.evaluation}
        assert scored_by == {"loglik", "exact"}


def test_a_judge_is_asked_only_where_it_counts(database: Database, workers: Workers) -> None:
    workers.grades = ("exact", "loglik", "judge")
    make_run(database, replace(PLAN, reward=Reward.EXACT, test_grader=Reward.JUDGE))
    asked = {
        (round_.split, work.evaluate.judge)
        for round_, work in all_claims(database, workers)
        if work.HasField("evaluate")
    }
    assert asked == {(Split.TRAIN, False), (Split.TEST, True)}


def test_trials_that_fail_count_in_nothing_and_stop_nothing(database: Database, workers: Workers) -> None:
    """The best self-edit of a context by its worth fails with one seed of two; another's fails with both."""
    workers.fails = lambda context, self_edit, seed: context.title == "context 0" and self_edit + seed >= 2
    name = make_run(database)
    workers.run_all()
    failed = count(database, Trial, Trial.state == TrialState.FAILED)
    assert failed == count(database, Trial, Trial.failure == "no luck") == 2 + 1, "both seeds of one, one of another"
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
        kept = (
            select(SelfEdit.position)
            .join(Kept, Kept.self_edit == SelfEdit.id)
            .join(Context, Context.id == SelfEdit.context)
            .join(Round, Round.id == Kept.round)
            .where(Round.purpose == Purpose.TRAIN, Context.title == "context 0")
        )
        assert session.scalars(kept).all() == [1], "the best of those with a score"


def test_an_adaptation_without_any_adapter_fails_and_says_why(database: Database, workers: Workers) -> None:
    workers.fails = lambda context, self_edit, seed: True
    name = make_adaptation(database)
    workers.run_all()
    with database.read() as session:
        work = find_work(session, name)
        assert work.state is State.FAILED
        assert work.failure_reason == "TRAINING_FAILED"
        assert work.failure_message == "no adapter could be trained: no luck"


def test_blank_answers_are_told_apart(database: Database, workers: Workers) -> None:
    workers.blank = 1
    name = make_adaptation(database, seeds=1)
    workers.run_all()
    with database.read() as session:
        told = session.scalars(select(Event.message).where(Event.parent == name)).all()
        assert "round 0: 3 of 6 answers with an adapter are blank" in told
        [first, *_] = session.scalars(select(Trial)).all()
        assert first.evaluation is not None
        assert (first.evaluation["blank_before"], first.evaluation["blank_after"]) == (0, 1)


def test_what_ended_jobs_left_in_the_store_is_removed(database: Database, workers: Workers, tmp_path: Path) -> None:
    make_run(database)
    workers.run_all()
    make_run(database)
    with database.read() as session:
        ended = session.scalars(select(Job.id).where(Job.state == JobState.SUCCEEDED)).first()
        queued = session.scalars(select(Job.id).where(Job.state == JobState.QUEUED)).first()
    store = LocalStore(tmp_path)
    for job in (ended, queued, "of-another-coordinator"):
        store.write(f"unfinished/{job}/trial.safetensors", b"half")
    Leftovers(database, store).sweep()
    kept = {f"unfinished/{job}/trial.safetensors" for job in (queued, "of-another-coordinator")}
    assert {*store.keys("unfinished/")} == kept


def test_policies_form_two_lines(database: Database, workers: Workers) -> None:
    name = make_run(database)
    workers.run_all()
    with database.read() as session:
        found = session.scalars(select(Round).where(Round.parent == name).order_by(Round.position)).all()
        train1, test1, control1, train2, test2, control2, test_control = found[2:]
        assert (train1.policy, test1.policy, train2.policy, test2.policy) == (
            0,
            train1.next_policy,
            train1.next_policy,
            train2.next_policy,
        )
        assert (control1.policy, control2.policy, test_control.policy) == (
            0,
            control1.next_policy,
            control2.next_policy,
        )
        assert count(database, Policy) == 5, "the base and two of each line"


def test_training_keeps_the_best_self_edit_of_each_context(database: Database, workers: Workers) -> None:
    best = {"context 0": 2, "context 1": 0, "context 2": 1, "context 3": 2}

    def worth(round_: Round, context: Context, position: int) -> float:
        return 0.9 if position == best.get(context.title) else 0.3

    workers.worth = worth
    make_run(database)
    workers.run_all()
    with database.read() as session:
        query = (
            select(Context.title, SelfEdit.position)
            .join(SelfEdit, SelfEdit.context == Context.id)
            .join(Kept, Kept.self_edit == SelfEdit.id)
            .join(Round, Round.id == Kept.round)
            .where(Round.purpose == Purpose.TRAIN)
        )
        assert {row.title: row.position for row in session.execute(query)} == best


def claimed(database: Database, job: Job) -> ClaimResponse:
    response = ClaimResponse()
    with database.read() as session:
        fill_work(session, session.get_one(Job, job.id), response)
    return response


def all_claims(database: Database, workers: Workers) -> Iterator[tuple[Round, ClaimResponse]]:
    """Of each job until there is nothing to do, its round and what its claim hands out; then it is completed."""
    while messages := workers.messages():
        for job_id, epoch in messages:
            workers.claim(job_id, epoch)
            with database.read() as session:
                job = session.get_one(Job, job_id)
                round_ = session.get_one(Round, job.round)
            yield round_, claimed(database, job)
            workers.complete(job_id, epoch)


def improve_jobs(database: Database, purpose: Purpose) -> list[Job]:
    query = select(Job).join(Round, Round.id == Job.round).where(Job.kind == JobKind.IMPROVE)
    with database.read() as session:
        return [*session.scalars(query.where(Round.purpose == purpose).order_by(Round.position))]


def test_grpo_trains_on_all_self_edits_of_contexts_where_they_differ(database: Database, workers: Workers) -> None:
    """Of one context all earn the same; of another's best self-edit both trials fail, so that two are left."""

    def worth(round_: Round, context: Context, position: int) -> float:
        return 0.4 if context.title == "context 1" else position / 10

    workers.worth = worth
    workers.fails = lambda context, self_edit, seed: context.title == "context 2" and self_edit == 2
    name = make_run(database, replace(PLAN, optimiser=Grpo(kl_coefficient=0.5, clip_range=0.1)))
    workers.run_all()
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
    first, second = (claimed(database, job).improve for job in improve_jobs(database, Purpose.TRAIN))
    assert [e.completion for e in first.examples] == [f"worth {i / 10} in round 2" for i in range(3)]
    assert {e.prompt for e in first.examples} == {"prompt of context 0"}, "context 1 has nothing to tell apart"
    low, middle, high = first.policy_gradient.advantages
    assert (low, middle, high) == pytest.approx((-1.2232, 0.0, 1.2232), abs=1e-3)
    assert (first.policy_gradient.kl_coefficient, first.policy_gradient.clip_range) == (0.5, 0.1)
    assert second.policy_gradient.advantages[:2] == pytest.approx((-0.998, 0.998), abs=1e-3)
    assert len(second.examples) == len(second.policy_gradient.advantages) == 2 + 3
    assert second.adapter, "it goes on from the first"
    for job in improve_jobs(database, Purpose.CONTROL):
        control = claimed(database, job).improve
        assert len(control.examples) == len(control.policy_gradient.advantages) == 2 * 3
        assert job.scope == claimed_self_edits(database, job)
    assert count(database, Policy) == 5


def claimed_self_edits(database: Database, job: Job) -> list[str]:
    """Those that the job's round has kept, in the order of its contexts."""
    query = select(SelfEdit.id).join(Kept, Kept.self_edit == SelfEdit.id).join(Context, Context.id == SelfEdit.context)
    with database.read() as session:
        kept = query.where(Kept.round == job.round).order_by(Context.position, SelfEdit.position)
        return [*session.scalars(kept)]


def test_rest_em_trains_on_the_kept_self_edits_by_their_likelihood(database: Database, workers: Workers) -> None:
    make_run(database)
    workers.run_all()
    for purpose in (Purpose.TRAIN, Purpose.CONTROL):
        for job in improve_jobs(database, purpose):
            improve = claimed(database, job).improve
            assert not improve.HasField("policy_gradient")
            assert job.scope == claimed_self_edits(database, job)
            assert len(improve.examples) == 2
            assert all(e.end and e.completion.startswith("worth ") for e in improve.examples)


def test_grpo_refuses_what_is_not_its_own(database: Database, workers: Workers) -> None:
    with pytest.raises(InvalidField, match="keep_without_gain is for ReST-EM"):
        make_run(database, replace(PLAN, optimiser=Grpo(), keep_without_gain=True))
    with pytest.raises(InvalidField, match="no reference_padding"):
        make_run(database, replace(PLAN, optimiser=Grpo(), teacher_recipe=LoraRecipe(reference_padding=64)))


def test_a_policy_of_another_optimiser_keeps_its_shape(database: Database, workers: Workers) -> None:
    small = LoraRecipe(rank=4, alpha=8, targets=("q_proj",), epochs=9)
    make_run(database, RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT, teacher_recipe=small), train=2, test=0)
    workers.run_all()
    with database.read() as session:
        teacher = session.get_one(Profile, TEACHER)
        assert active_recipe(session, teacher, RestEm()) == small
        further = active_recipe(session, teacher, Grpo())
    assert further == replace(GRPO_RECIPE, rank=4, alpha=8, targets=("q_proj",))


def test_the_first_control_chooses_among_the_self_edits_of_the_first_round(
    database: Database, workers: Workers
) -> None:
    name = make_run(database)
    workers.run_all()
    with database.read() as session:
        found = session.scalars(select(Round).where(Round.parent == name).order_by(Round.position)).all()
        train, control = found[2], found[4]
        kept = session.scalars(
            select(SelfEdit).join(Kept, Kept.self_edit == SelfEdit.id).where(Kept.round == control.id)
        )
        assert {row.round for row in kept} == {train.id}
        generated = select(func.count()).where(Job.round == control.id, Job.kind == JobKind.GENERATE)
        assert session.scalar(generated) == 0


def test_nothing_better_than_the_base_leaves_the_policy_as_it_is(database: Database, workers: Workers) -> None:
    workers.worth = lambda round_, context, position: 0.0
    name = make_run(database, RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT), train=2, test=0)
    workers.run_all()
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
        assert count(database, Policy) == 1
        assert session.get_one(Profile, TEACHER).active_policy == 0


def test_the_last_policy_becomes_active_only_if_it_measured_better(database: Database, workers: Workers) -> None:
    def better_later(round_: Round, context: Context, position: int) -> float:
        return 0.2 + 0.1 * round_.position

    workers.worth = better_later
    name = make_run(database)
    workers.run_all()
    with database.read() as session:
        last = session.scalars(
            select(Round).where(Round.parent == name, Round.purpose == Purpose.TRAIN).order_by(Round.position)
        ).all()[-1]
        assert session.get_one(Profile, TEACHER).active_policy == last.next_policy
        assert count(database, Job, Job.kind == JobKind.ACTIVATE) == 1

    workers.worth = lambda round_, context, position: 0.9 - 0.05 * round_.position
    make_run(database)
    workers.run_all()
    with database.read() as session:
        assert session.get_one(Profile, TEACHER).active_policy == last.next_policy, "the second run did worse"


def test_a_policy_is_trained_further_in_its_own_shape(database: Database, workers: Workers) -> None:
    small = LoraRecipe(rank=4, alpha=8, targets=("q_proj",))
    one_round = RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT, teacher_recipe=small)
    make_run(database, one_round, train=2, test=0)
    workers.run_all()
    with database.read() as session:
        assert session.get_one(Profile, TEACHER).active_policy == 1
        assert active_recipe(session, session.get_one(Profile, TEACHER), RestEm()) == small
    with pytest.raises(InvalidField, match="has rank 4 on q_proj; go on with these, or activate"):
        make_run(database, RunPlan(rounds=1), train=2, test=0)
    make_run(database, replace(one_round, seed=1), train=2, test=0)
    with database.write() as session:
        set_active(session, session.get_one(Profile, TEACHER), 0)
    make_run(database, RunPlan(rounds=1), train=2, test=0)


def test_a_run_starts_from_the_policy_that_was_active_when_it_was_created(database: Database, workers: Workers) -> None:
    make_run(database, RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT), train=2, test=0)
    second = make_run(database, RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT), train=2, test=0)
    workers.run_all()
    third = make_run(database, RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT), train=2, test=0)
    with database.read() as session:
        assert find_run(session, second).policy == 0
        assert find_run(session, third).policy == session.get_one(Profile, TEACHER).active_policy > 0


def test_measurements_are_in_the_order_of_the_table(database: Database, workers: Workers) -> None:
    name = make_run(database)
    workers.run_all()
    with database.read() as session:
        rows = report.table(session, name)
    names = ["base", "passage only", "self-edits before RL", "after round 1", "after round 2", "control"]
    assert sorted(rows) == sorted(names)
    assert list(rows)[:3] == names[:3]
    assert all(len(scores) == 3 for scores in rows.values())
    assert set(rows["base"].values()) == {0.0}
    assert set(rows["passage only"].values()) == {0.1}


def test_an_adaptation_takes_the_best_self_edit_and_its_best_trial(database: Database, workers: Workers) -> None:
    name = make_adaptation(database)
    workers.run_all()
    with database.read() as session:
        adaptation = session.get_one(Adaptation, name)
        assert adaptation.state is State.SUCCEEDED
        trial = session.get_one(Trial, adaptation.trial)
        assert session.get_one(SelfEdit, trial.self_edit).text.startswith("worth 0.2")
        assert trial.adapter is not None
    assert count(database, Trial) == 6
    assert count(database, Policy) == 1, "an adaptation leaves the teacher alone"


def test_without_questions_the_teacher_is_asked_for_some(database: Database, workers: Workers) -> None:
    workers.questions = (Question(question="What?", answer="That"),)
    name = make_adaptation(database, questions=0)
    workers.run_all()
    with database.read() as session:
        assert session.get_one(Adaptation, name).state is State.SUCCEEDED
        context = session.scalar(select(Context).where(Context.parent == name))
        assert context is not None
        assert context.questions == [{"question": "What?", "answer": "That"}]


def test_without_any_question_it_fails_and_says_so(database: Database, workers: Workers) -> None:
    name = make_adaptation(database, questions=0)
    workers.run_all()
    with database.read() as session:
        adaptation = session.get_one(Adaptation, name)
        assert (adaptation.state, adaptation.failure_reason) == (State.FAILED, "NO_QUESTIONS")
        assert "context 0" in (adaptation.failure_message or "")
    assert count(database, Trial) == 0


def without_questions(count: int) -> list[TaughtContext]:
    return [replace(context, questions=()) for context in some_contexts(count)]


def test_a_run_pays_by_the_questions_that_its_teacher_writes(database: Database, workers: Workers) -> None:
    workers.questions = (Question(question="What?", answer="That"),)
    name = make_run(database, contexts=without_questions(4))
    workers.run_all()
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
        query = select(Context.split, Context.questions).where(Context.parent == name)
        asked = {row.split: row.questions for row in session.execute(query)}
        assert asked[Split.TRAIN] == [{"question": "What?", "answer": "That"}]
        assert [q["answer"] for q in asked[Split.TEST]] == ["a0", "a1"], "measured on its own"
    assert count(database, Trial) == TRIALS


def test_a_context_that_nobody_can_ask_about_is_left_out(database: Database, workers: Workers) -> None:
    some = [*some_contexts(3), *without_questions(1)]
    name = make_run(database, contexts=some)
    workers.run_all()
    with database.read() as session:
        run = find_run(session, name)
        assert run.state is State.SUCCEEDED
        said = [event.message for event in events_after(session, name, 0, limit=1000)]
        assert sum("wrote no question that can be read" in message for message in said) == 1
        progress = progress_message(session, run)
        assert progress.trials_done == progress.trials_total == TRIALS - 3 * 2


def test_a_run_without_any_question_fails_and_says_so(database: Database, workers: Workers) -> None:
    name = make_run(database, contexts=without_questions(4), test=0)
    workers.run_all()
    with database.read() as session:
        run = find_run(session, name)
        assert (run.state, run.failure_reason) == (State.FAILED, "NO_QUESTIONS")


def test_the_control_line_learns_from_no_context_that_was_left_out(database: Database, workers: Workers) -> None:
    """Of the second slice one context has no questions and gets none: neither line has it, whoever is ready first."""
    name = make_run(database, contexts=[*some_contexts(3), *without_questions(1)])
    workers.run_all()
    with database.read() as session:
        query = (
            select(Round.purpose, func.count())
            .join(Kept, Kept.round == Round.id)
            .where(Round.parent == name, Round.first_context == 2)
            .group_by(Round.purpose)
        )
        kept = {row[0]: row[1] for row in session.execute(query)}
        assert find_run(session, name).state is State.SUCCEEDED
    assert kept == {Purpose.TRAIN: 1, Purpose.CONTROL: 1}


def test_a_control_waits_for_questions_that_may_still_be_written(database: Database, workers: Workers) -> None:
    """The teacher's questions for the second slice come with its train round, after the control's self-edits."""
    workers.questions = (Question(question="What?", answer="That"),)
    name = make_run(database, contexts=without_questions(4))
    held: list[tuple[str, int]] = []
    while messages := workers.messages():
        for job, epoch in messages:
            if is_second_train_generation(database, job):
                held.append((job, epoch))
            else:
                workers.do(job, epoch)
    with database.read() as session:
        control = session.scalar(select(Round).where(Round.purpose == Purpose.CONTROL, Round.first_context == 2))
        assert control is not None
        assert (control.state, control.next_policy) == (State.RUNNING, None)
    for job, epoch in held:
        workers.do(job, epoch)
    workers.run_all()
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
        control = session.scalar(select(Round).where(Round.purpose == Purpose.CONTROL, Round.first_context == 2))
        assert control is not None
        assert count(database, Kept, Kept.round == control.id) == 2


def is_second_train_generation(database: Database, job_id: str) -> bool:
    with database.read() as session:
        job = session.get_one(Job, job_id)
        round_ = session.get_one(Round, job.round)
        return job.kind is JobKind.GENERATE and round_.purpose is Purpose.TRAIN and round_.first_context == 2


def test_penalties_decide_what_is_kept(database: Database, workers: Workers) -> None:
    """The best by its score has forgotten most."""
    workers.forgetting = lambda self_edit: 1.0 if self_edit == 2 else 0.0
    plan = replace(PLAN, rounds=1, control=False, reward_shape=RewardShape(forgetting=0.5))
    name = make_run(database, plan, train=2, test=0)
    workers.run_all()
    with database.read() as session:
        query = (
            select(SelfEdit.position)
            .join(Kept, Kept.self_edit == SelfEdit.id)
            .join(Round, Round.id == Kept.round)
            .where(Round.parent == name)
        )
        assert session.scalars(query).all() == [1, 1]


def test_texts_are_drawn_again_where_nothing_is_measured(database: Database, workers: Workers) -> None:
    workers.redrawn = 1
    name = make_run(database, replace(PLAN, rounds=1, control=False))
    redraws = {
        round_.purpose: work.generate.redraws
        for round_, work in all_claims(database, workers)
        if work.HasField("generate")
    }
    assert redraws == {Purpose.TRAIN: 2, Purpose.TEST: 0}
    with database.read() as session:
        assert any("4 drawn again" in event.message for event in events_after(session, name, 0, limit=1000))


def test_a_race_goes_on_without_those_that_failed(database: Database, workers: Workers) -> None:
    """One self-edit fails with its first seed, another with its second; what they took counts as spent."""
    workers.fails = lambda context, self_edit, seed: (self_edit, seed) in {(0, 0), (1, 1)}
    workers.luck = lambda context, self_edit, seed: 0.5 * (-1) ** (self_edit + seed)
    plan = replace(PLAN, rounds=1, seeds=4, control=False, seed_allocation=SeedAllocation.RACE)
    name = make_run(database, plan, train=1, test=0)
    workers.run_all()
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
        trials = session.execute(
            select(SelfEdit.position, func.count())
            .join(Trial, Trial.self_edit == SelfEdit.id)
            .where(SelfEdit.round == Trial.round)
            .group_by(SelfEdit.position)
        ).all()
    spent = {row[0]: row[1] for row in trials}
    assert spent[0] == 1, "nothing is known of it"
    assert spent[1] > 2, "it races on with what it has"
    assert sum(spent.values()) <= 3 * 4


def test_a_race_goes_on_without_those_that_are_of_no_use(database: Database, workers: Workers) -> None:
    """Where all score nothing, they are as good as any: but there is nothing to train."""
    workers.worth = lambda round_, context, i: 0.0
    workers.refuses = lambda context, self_edit, seed: self_edit == 0
    plan = replace(PLAN, rounds=1, seeds=4, control=False, seed_allocation=SeedAllocation.RACE)
    name = make_run(database, plan, train=1, test=0)
    workers.run_all()
    with database.read() as session:
        assert find_run(session, name).state is State.SUCCEEDED
        query = select(SelfEdit.position, Trial.state).join(Trial, Trial.self_edit == SelfEdit.id)
        states = [state for position, state in session.execute(query) if position == 0]
        others = [state for position, state in session.execute(query) if position != 0]
    assert states == [TrialState.REFUSED], "once"
    assert len(others) > 2, "the others race"


def test_a_plan_of_an_earlier_release_goes_on_as_it_began(database: Database, workers: Workers) -> None:
    name = make_run(database)
    with database.write() as session:
        run = find_run(session, name)
        run.plan = {key: value for key, value in run.plan.items() if key != "redraws"}
    with database.read() as session:
        assert plan_of(find_run(session, name)).redraws == 0


def test_a_race_spends_trials_where_the_choice_is_open(database: Database, workers: Workers) -> None:
    """In "context 0" two are close, in "context 1" one is far ahead; luck comes and goes."""
    plan = replace(PLAN, rounds=1, seeds=4, control=False, seed_allocation=SeedAllocation.RACE, race_confidence=0.9)
    worths = {"context 0": [0.1, 0.5, 0.52], "context 1": [0.1, 0.9, 0.2]}
    workers.worth = lambda round_, context, i: worths[context.title][i]
    workers.luck = lambda context, self_edit, seed: 0.05 * (-1) ** (self_edit + seed)
    name = make_run(database, plan, train=2, test=0)
    workers.run_all()
    with database.read() as session:
        run = find_run(session, name)
        assert run.state is State.SUCCEEDED
        query = (
            select(Context.title, SelfEdit.position, func.count())
            .join(SelfEdit, SelfEdit.context == Context.id)
            .join(Trial, Trial.self_edit == SelfEdit.id)
            .where(Context.parent == name)
            .group_by(Context.title, SelfEdit.position)
        )
        trials = {(title, position): n for title, position, n in session.execute(query)}
        progress = progress_message(session, run)
    spent = {title: [trials[title, i] for i in range(3)] for title in worths}
    assert sum(spent["context 0"]) == 3 * 4, "the whole budget, since the two stay close"
    assert spent["context 0"][0] < min(spent["context 0"][1:]), "most of it on them"
    assert sum(spent["context 1"]) < 3 * 4, "decided early"
    assert progress.trials_done == progress.trials_total == sum(map(sum, spent.values()))


def test_equal_requests_share_their_adapters(database: Database, workers: Workers) -> None:
    make_adaptation(database)
    workers.run_all()
    trained = count(database, Job, Job.kind == JobKind.TRAIN)
    again = make_adaptation(database)
    workers.run_all()
    assert count(database, Job, Job.kind == JobKind.TRAIN) == trained, "the second trained nothing"
    assert count(database, Trial) == 12
    assert count(database, Adapter) == 6
    with database.read() as session:
        assert session.get_one(Adaptation, again).trial is not None


def test_a_duplicate_message_of_a_running_job_is_refused(database: Database, workers: Workers) -> None:
    make_adaptation(database)
    [(job, epoch)] = workers.messages()
    workers.claim(job, epoch, worker="first")
    with pytest.raises(JobNotQueued):
        workers.claim(job, epoch, worker="second")
    workers.claim(job, epoch, worker="first")  # whose answer was lost may ask again
    workers.complete(job, epoch)
    with pytest.raises(JobNotQueued):
        workers.claim(job, epoch, worker="second")


def test_a_result_may_be_sent_twice(database: Database, workers: Workers) -> None:
    make_adaptation(database)
    [(job, epoch)] = workers.messages()
    workers.claim(job, epoch)
    workers.complete(job, epoch)
    workers.complete(job, epoch)
    assert count(database, SelfEdit) == 3


def expire(database: Database, job: str) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job).values(lease_until=now() - 1.0))


def test_a_worker_that_vanished_loses_its_job_and_what_it_still_sends_has_no_effect(
    database: Database, workers: Workers
) -> None:
    make_adaptation(database)
    [(job, epoch)] = workers.messages()
    workers.claim(job, epoch)
    expire(database, job)
    Reaper(database, forgotten_seconds=60).sweep()
    [(again, next_epoch)] = workers.messages()
    assert (again, next_epoch) == (job, epoch + 1)
    with pytest.raises(StaleEpoch):
        workers.complete(job, epoch)
    assert count(database, SelfEdit) == 0
    with pytest.raises(StaleEpoch):
        workers.claim(job, epoch)
    workers.do(job, next_epoch)
    assert count(database, SelfEdit) == 3


def test_a_worker_that_never_beat_is_found_too(database: Database, workers: Workers) -> None:
    make_adaptation(database)
    [(job, epoch)] = workers.messages()
    workers.claim(job, epoch)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job).values(lease_until=None, start_time=None))
    Reaper(database, forgotten_seconds=60).sweep()
    assert [message[1] for message in workers.messages()] == [epoch + 1]


def test_attempts_are_bounded_and_then_the_work_fails_with_the_reason(database: Database, workers: Workers) -> None:
    name = make_adaptation(database)
    attempts = 0
    while messages := workers.messages():
        for job, epoch in messages:
            workers.claim(job, epoch)
            attempts += 1
            with database.write() as session:
                failure = Failure(reason="OUT_OF_LUCK", message="again")
                outcomes.report_failure(session, job, epoch=epoch, failure=failure, retryable=True)
    assert attempts == 8
    with database.read() as session:
        adaptation = session.get_one(Adaptation, name)
        assert (adaptation.state, adaptation.failure_reason) == (State.FAILED, "OUT_OF_LUCK")


def test_an_error_that_will_not_go_away_is_not_retried(database: Database, workers: Workers) -> None:
    name = make_run(database)
    messages = workers.messages()
    workers.claim(*messages[0])
    with database.write() as session:
        failure = Failure(reason="MODEL_NOT_LOADABLE", message="no such model")
        outcomes.report_failure(session, messages[0][0], epoch=messages[0][1], failure=failure, retryable=False)
    with database.read() as session:
        run = find_run(session, name)
        assert (run.state, run.failure_reason, run.failure_message) == (
            State.FAILED,
            "MODEL_NOT_LOADABLE",
            "no such model",
        )
    assert count(database, Job, Job.state.in_([JobState.QUEUED, JobState.RUNNING])) == 0
    with pytest.raises(JobNotQueued):
        workers.claim(*messages[1])


def test_cancelling_stops_jobs_in_flight_and_keeps_what_is_done(database: Database, workers: Workers) -> None:
    name = make_run(database)
    left = workers.run(3)
    workers.claim(*left[0])
    with database.write() as session:
        rounds.end_work(session, find_work(session, name, lock=True), State.CANCELLED)
    with database.read() as session:
        assert find_run(session, name).state is State.CANCELLED
    with pytest.raises(StaleEpoch):
        workers.complete(*left[0])
    with pytest.raises(JobNotQueued):
        workers.claim(*left[1])
    assert count(database, Trial, Trial.state == TrialState.TRAINED) > 0
    before = count(database, AuditEntry)
    with database.write() as session:
        rounds.end_work(session, find_work(session, name, lock=True), State.FAILED)
    assert count(database, AuditEntry) == before, "what has ended stays as it ended"


def test_a_queue_whose_messages_were_lost_is_announced_again(database: Database, workers: Workers) -> None:
    make_adaptation(database)
    [message] = workers.messages()  # and nobody gets it
    reaper = Reaper(database, forgotten_seconds=5.0)
    reaper.sweep()
    assert workers.messages() == [], "not yet"
    with database.write() as session:
        session.execute(update(Job).values(queue_time=now() - 6.0))
    reaper.sweep()
    assert workers.messages() == [message], "the same attempt: nothing was tried"
    reaper.sweep()
    assert workers.messages() == [], "once is enough for a while"


def test_a_queue_that_flows_is_left_alone(database: Database, workers: Workers) -> None:
    make_run(database)
    messages = workers.messages()
    with database.write() as session:
        session.execute(update(Job).values(queue_time=now() - 60.0))
    generating = [m for m in messages if m[0]]
    workers.claim(*generating[0])
    Reaper(database, forgotten_seconds=5.0).sweep()
    with database.read() as session:
        busy = session.get_one(Job, generating[0][0]).queue
        announced = session.scalars(select(Outbox.queue)).all()
    assert busy not in announced


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_completions_gives_the_same_trials(database: Database, workers: Workers, seed: int) -> None:
    rng = random.Random(seed)
    make_run(database)
    waiting = workers.messages()
    while waiting:
        job, epoch = waiting.pop(rng.randrange(len(waiting)))
        workers.claim(job, epoch)
        if rng.random() < 0.3:
            expire(database, job)
            Reaper(database, forgotten_seconds=60).sweep()
        else:
            workers.complete(job, epoch)
        waiting += workers.messages()
    assert count(database, Trial, Trial.state == TrialState.SCORED) == TRIALS
    with database.read() as session:
        seeds = session.execute(select(Trial.self_edit, Trial.position)).all()
        assert len(seeds) == len(set(seeds)), "no trial twice"
        assert session.scalar(select(Run.state)) is State.SUCCEEDED


def test_the_student_profile_decides_the_size_of_train_jobs(database: Database, workers: Workers) -> None:
    make_run(database)
    workers.run_all()
    with database.read() as session:
        sizes = [len(scope) for scope in session.scalars(select(Job.scope).where(Job.kind == JobKind.TRAIN))]
        queues = set(session.scalars(select(Job.queue).where(Job.kind == JobKind.TRAIN)))
    assert max(sizes) == 4
    assert queues == {"train." + STUDENT.removeprefix("profiles/")}


def test_what_no_database_keeps_is_replaced(database: Database, workers: Workers) -> None:
    """A model may write any character."""
    name = make_adaptation(database)
    [(job, epoch)] = workers.messages()
    workers.claim(job, epoch)
    written = [Generated.SelfEdit(prompt="p\0", text=f"one\0two {i}", seed=i) for i in range(2)]
    result = CompleteRequest(job=job, epoch=epoch, generated=Generated(items=[Generated.Item(self_edits=written)]))
    asyncio.run(JobApi(Units(database), lease_seconds=10.0).Complete(result, Mock()))
    with database.read() as session:
        query = select(SelfEdit.text).join(Context, Context.id == SelfEdit.context).where(Context.parent == name)
        texts = {text for text in session.scalars(query) if text}
    assert texts == {f"one\N{REPLACEMENT CHARACTER}two {i}" for i in range(2)}


def test_policies_of_one_teacher_are_numbered_one_after_the_other(database: Database) -> None:
    make_profiles(database)

    def improve(_: int) -> int:
        with database.write() as session:
            version = next_version(session, find_profile(session, TEACHER))
            session.add(Policy(profile=TEACHER, version=version, adapter=None, run=None))
            return version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(improve, range(8))) == [*range(1, 9)]


def test_a_teacher_that_gets_a_policy_takes_adaptations_meanwhile(database: Database) -> None:
    if database.url.startswith("sqlite"):
        pytest.skip("SQLite has one writer at a time")
    make_profiles(database)
    with database.write() as improving:
        next_version(improving, find_profile(improving, TEACHER))
        with database.write() as creating:
            creating.execute(text("SET LOCAL lock_timeout = '1s'"))
            create_adaptation(
                creating,
                teacher=TEACHER,
                student=STUDENT,
                plan=AdaptationPlan(),
                context=TaughtContext(title="T", passage="P"),
            )
