"""The round state machine with few-shot tasks: a self-edit may be of no use, and decides how it is trained on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from rookery.internal.v1.job_service_pb2 import ClaimResponse, TrainWork
from rookery.tasks import load_tasks, task_contexts
from rookery_coordinator import leases, submissions
from rookery_coordinator.api.work import fill_work
from rookery_coordinator.database import Database
from rookery_coordinator.report import table
from rookery_coordinator.tables import Adaptation, Job, Kept, Round, Run, SelfEdit, Trial
from rookery_coordinator.types import AdaptationPlan, JobKind, Reward, RunPlan, State, TrialState
from rookery_shared.domains import few_shot, find_domain
from rookery_shared.errors import InvalidField
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import Configuration, Strategy, read_configuration, write_configuration
from rookery_shared.types import Context as TaughtContext
from rookery_shared.types import Demonstration, LoraRecipe, Question
from rookery_shared.wire import context_from_proto
from tests.integration.workers import LEASE, Workers
from tests.integration.worlds import STUDENT, TEACHER, make_profiles, make_run

CONFIGURATION = write_configuration(
    Configuration(groups=("use_basic_augmentations",), strategy=Strategy.ALL, learning_rate=5e-4, epochs=1)
)


FEW_SHOT = find_domain("few_shot")


def few_shot_context(name: str) -> TaughtContext:
    """Its output is its input, the other way round."""
    shown = tuple(Demonstration(input=f"{i} 0", output=f"0 {i}") for i in (1, 2, 3))
    return TaughtContext(title=name, demonstrations=shown, questions=(Question(question="4 0", answer="0 4"),))


def test_of_tasks_what_cannot_be_used_is_refused_and_all_that_gain_are_kept(database: Database) -> None:
    """Four self-edits: no JSON, two that gain, one that does not."""
    make_profiles(database)
    plan = RunPlan(
        domain="few_shot", style="configuration", rounds=1, self_edits=4, test_self_edits=1, reward=Reward.EXACT
    )
    name = make_run(database, plan, contexts=[few_shot_context("a"), few_shot_context("b")], test=0)
    workers = Workers(database)
    workers.text = lambda i: "" if i == 0 else CONFIGURATION.replace("0.0005", f"0.000{i}")
    workers.worth = lambda round_, context, i: [0.0, 1.0, 1.0, 0.0][i]
    [generate] = workers.messages()
    workers.do(*generate)
    [(job, epoch), *others] = workers.messages()
    workers.claim(job, epoch)
    with database.write() as session:
        train = ClaimResponse()
        fill_work(session, session.get_one(Job, job), train)
        assert (train.train.domain, train.train.domain_version) == ("few_shot", FEW_SHOT.version)
        for trial in train.train.trials:
            assert trial.recipe.learning_rate in (1e-4, 2e-4, 3e-4)
            assert (trial.recipe.epochs, trial.recipe.completion_only_loss) == (1, False)
            taught = context_from_proto(trial.context)
            assert len(FEW_SHOT.examples(taught, trial.self_edit, seed=trial.seed)) > 20, "augmented"
        states = session.scalars(select(Trial.state)).all()
        assert sorted(states) == ["planned"] * 6 + ["refused"] * 2
        [refused, _] = session.scalars(select(Trial).where(Trial.state == TrialState.REFUSED))
        assert (refused.score_after, refused.adapter) == (0.0, None)
        assert "JSON" in (refused.failure or "")
    workers.complete(job, epoch)
    for other in others:
        workers.do(*other)
    workers.run_all()
    with database.read() as session:
        run = session.get_one(Run, name)
        assert run.state is State.SUCCEEDED, run.failure_message
        kept = session.scalars(select(SelfEdit.position).join(Kept, Kept.self_edit == SelfEdit.id)).all()
        assert sorted(kept) == [1, 1, 2, 2]


def test_baselines_are_rows_of_the_report_and_need_no_teacher(database: Database) -> None:
    make_profiles(database)
    plan = RunPlan(
        domain="few_shot",
        style="configuration",
        rounds=0,
        test_self_edits=3,
        reward=Reward.EXACT,
        baselines=("random", "oracle"),
        student_recipe=replace(FEW_SHOT.student_recipe, rank=8),
    )
    contexts = [few_shot_context("a"), few_shot_context("b")]
    with database.write() as session:
        run = submissions.create_run(session, teacher=TEACHER, student=STUDENT, plan=plan, train=[], test=contexts)
        name = run.name
    with database.read() as session:
        edits = session.execute(
            select(Round.label, SelfEdit.text).join(Round, Round.id == SelfEdit.round).order_by(SelfEdit.position)
        ).all()
    texts = {label: [text for of, text in edits if of == label] for label in ("passage only", "random", "oracle")}
    assert {label: len(found) for label, found in texts.items()} == {"passage only": 2, "random": 6, "oracle": 6}
    assert {*texts["passage only"]} == {""}
    assert len({*texts["random"]}) == 6
    assert not any(FEW_SHOT.fault(contexts[0], text, recipe=FEW_SHOT.student_recipe) for text in texts["random"])
    [oracle] = {*texts["oracle"]}
    assert read_configuration(oracle) == Configuration(
        groups=(*GROUPS,), strategy=Strategy.OUTPUT, learning_rate=1e-4, epochs=2
    )
    workers = Workers(database)
    workers.text = lambda i: CONFIGURATION.replace("0.0005", f"0.000{i + 1}")
    workers.run_all()
    with database.read() as session:
        assert session.get_one(Run, name).state is State.SUCCEEDED
        assert [*table(session, name)] == ["base", "passage only", "random", "oracle", "self-edits before RL"]


@pytest.mark.parametrize(
    ("domain", "baselines", "said"),
    [
        ("few_shot", ("best",), "has no baseline 'best', but random, oracle"),
        ("few_shot", ("random", "random"), "twice"),
        ("knowledge", ("random",), "nor any other"),
    ],
)
def test_a_baseline_that_there_is_not_is_refused(
    database: Database, domain: str, baselines: tuple[str, ...], said: str
) -> None:
    make_profiles(database)
    rules = find_domain(domain)
    plan = RunPlan(domain=domain, style=rules.styles[0], rounds=0, reward=Reward(rules.rewards[0]), baselines=baselines)
    with database.write() as session, pytest.raises(InvalidField, match=said):
        submissions.create_run(
            session, teacher=TEACHER, student=STUDENT, plan=plan, train=[], test=[few_shot_context("a")]
        )


def test_an_adaptation_to_a_task_without_a_usable_self_edit_fails_and_says_why(database: Database) -> None:
    make_profiles(database)
    plan = AdaptationPlan(
        domain="few_shot",
        style="configuration",
        self_edits=2,
        reward=Reward.EXACT,
        student_recipe=LoraRecipe(rank=8, alpha=16),
    )
    with database.write() as session:
        name = submissions.create_adaptation(
            session, teacher=TEACHER, student=STUDENT, plan=plan, context=few_shot_context("a")
        ).name
    Workers(database).run_all()
    with database.read() as session:
        adaptation = session.get_one(Adaptation, name)
        assert (adaptation.state, adaptation.failure_reason) == (State.FAILED, "UNUSABLE_SELF_EDITS")


def adapt(database: Database, context: TaughtContext, *, self_edits: int = 2, seeds: int = 1) -> str:
    plan = AdaptationPlan(
        domain="few_shot",
        style="configuration",
        self_edits=self_edits,
        seeds=seeds,
        reward=Reward.EXACT,
        student_recipe=LoraRecipe(rank=8, alpha=16),
    )
    with database.write() as session:
        return submissions.create_adaptation(session, teacher=TEACHER, student=STUDENT, plan=plan, context=context).name


def train_work(database: Database, job: str) -> TrainWork:
    claimed = ClaimResponse()
    with database.read() as session:
        fill_work(session, session.get_one(Job, job), claimed)
    return claimed.train


def test_nobody_makes_practice_while_a_transaction_is_open(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made some here would fail: at creation, when results arrive, when trials are planned and claimed."""
    for making in ("tasks_on_grids", "tasks_on_texts"):
        monkeypatch.setattr(few_shot, making, None)
    make_profiles(database)
    plan = RunPlan(
        domain="few_shot",
        style="configuration",
        rounds=1,
        self_edits=2,
        test_self_edits=2,
        reward=Reward.EXACT,
        baselines=("random", "oracle"),
    )
    contexts = [few_shot_context("a"), few_shot_context("b")]
    with database.write() as session:
        name = submissions.create_run(
            session, teacher=TEACHER, student=STUDENT, plan=plan, train=contexts, test=contexts
        ).name
    everything = write_configuration(
        Configuration(groups=(*GROUPS,), strategy=Strategy.ALL, learning_rate=5e-4, epochs=20)
    )
    workers = Workers(database)
    workers.text = lambda i: everything.replace("0.0005", f"0.000{i + 1}")
    workers.fault = lambda domain, context, text: ""
    trials = 0
    while messages := workers.messages():
        for job, epoch in messages:
            workers.claim(job, epoch)
            trials += len(train_work(database, job).trials)
            workers.complete(job, epoch)
    with database.read() as session:
        assert session.get_one(Run, name).state is State.SUCCEEDED
    assert trials == 2 + 4 + 4 + 4 + 4, "the tasks alone, two baselines, before, the round; after it all are reused"


def test_trials_learn_their_context_without_its_questions_by_their_self_edit(database: Database) -> None:
    """Baselines have self-edits as well; what learns the context alone has none."""
    make_profiles(database)
    plan = RunPlan(
        domain="few_shot",
        style="configuration",
        rounds=0,
        test_self_edits=1,
        reward=Reward.EXACT,
        baselines=("oracle",),
        student_recipe=replace(FEW_SHOT.student_recipe, rank=8),
    )
    context = few_shot_context("a")
    with database.write() as session:
        submissions.create_run(session, teacher=TEACHER, student=STUDENT, plan=plan, train=[], test=[context])
    workers = Workers(database)
    workers.text = lambda i: CONFIGURATION
    found: dict[str, str | None] = {}
    while messages := workers.messages():
        for job, epoch in messages:
            workers.claim(job, epoch)
            for trial in train_work(database, job).trials:
                assert context_from_proto(trial.context) == replace(context, questions=())
                with database.read() as session:
                    round_ = session.get_one(Round, session.get_one(Trial, trial.id).round)
                    found[round_.label] = trial.self_edit if trial.HasField("self_edit") else None
            workers.complete(job, epoch)
    oracle = FEW_SHOT.baseline("oracle", context, seed=0, recipe=FEW_SHOT.student_recipe)
    assert found == {"passage only": None, "oracle": oracle, "self-edits before RL": CONFIGURATION}


def test_a_fault_that_is_not_reported_leaves_the_trial_to_the_student(database: Database) -> None:
    """Even one that is blank is no context alone. It is claimed as it is, and refused there, alone."""
    make_profiles(database)
    name = adapt(database, few_shot_context("a"), self_edits=3)
    workers = Workers(database)
    workers.text = lambda i: ["Here it is:", " ", CONFIGURATION][i]
    workers.fault = lambda domain, context, text: ""
    [generate] = workers.messages()
    workers.do(*generate)
    [(job, epoch)] = workers.messages()
    trials = train_work(database, job).trials
    assert [trial.self_edit for trial in trials] == ["Here it is:", " ", CONFIGURATION]
    assert all(trial.HasField("self_edit") for trial in trials)
    assert [trial.recipe.epochs for trial in trials] == [10, 10, 1], "as planned where it cannot be read"
    workers.refuses = lambda context, self_edit, seed: self_edit < 2
    workers.do(job, epoch)
    workers.run_all()
    with database.read() as session:
        assert session.get_one(Adaptation, name).state is State.SUCCEEDED
        told = session.scalars(select(SelfEdit.fault).order_by(SelfEdit.position)).all()
        assert told == ["no good", "no good", ""]
        states = session.scalars(
            select(Trial.state).join(SelfEdit, SelfEdit.id == Trial.self_edit).order_by(SelfEdit.position)
        ).all()
        assert states == [TrialState.REFUSED, TrialState.REFUSED, TrialState.SCORED]


def test_what_is_said_of_a_self_edit_is_stored_and_believed(database: Database) -> None:
    make_profiles(database)
    adapt(database, few_shot_context("a"))
    workers = Workers(database)
    workers.text = lambda i: CONFIGURATION.replace("0.0005", f"0.000{i + 1}")
    workers.fault = lambda domain, context, text: "I say so" if "0.0002" in text else ""
    [generate] = workers.messages()
    workers.do(*generate)
    with database.read() as session:
        assert session.scalars(select(SelfEdit.fault).order_by(SelfEdit.position)).all() == ["", "I say so"]
        refused = session.scalars(select(Trial).where(Trial.state == TrialState.REFUSED)).one()
        assert refused.failure == "I say so"


def test_an_adapter_is_reused_for_the_same_examples_only(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same again, whatever is asked about it; not with other demonstrations, nor by other rules."""
    make_profiles(database)
    workers = Workers(database)
    workers.text = lambda i: CONFIGURATION.replace("0.0005", f"0.000{i + 1}")

    def trained(context: TaughtContext) -> int:
        before = len(workers.done)
        adapt(database, context)
        workers.run_all()
        return sum(kind is JobKind.TRAIN for _, kind in workers.done[before:])

    context = few_shot_context("a")
    assert trained(context) == 1
    assert trained(context) == 0
    assert trained(replace(context, questions=(Question(question="7 0", answer="0 7"),))) == 0
    assert trained(replace(context, demonstrations=context.demonstrations[:2])) == 1
    monkeypatch.setattr(type(FEW_SHOT), "version", FEW_SHOT.version + 1)
    assert trained(context) == 1


def test_sixteen_trials_of_the_largest_arc_task_are_claimed_at_once(database: Database, seal_data: Path) -> None:
    files = [seal_data / "few_shot" / f"arc-agi_training_{kind}.json" for kind in ("challenges", "solutions")]
    tasks = [context_from_proto(message) for message in task_contexts(load_tasks(*files), files[0])]
    largest = max(tasks, key=lambda task: sum(len(d.input) + len(d.output) for d in task.demonstrations))
    make_profiles(database, trials_per_job=16)
    adapt(database, largest, self_edits=16, seeds=3)
    every = write_configuration(Configuration(groups=(*GROUPS,), strategy=Strategy.ALL, learning_rate=1e-3, epochs=1))
    workers = Workers(database)
    workers.text = lambda i: every.replace("0.001", f"0.001{i + 10}")
    [generate] = workers.messages()
    workers.do(*generate)
    seconds: list[float] = []
    for job, epoch in workers.messages():
        began = time.perf_counter()
        with database.write() as session:
            row = leases.claim(session, job, epoch=epoch, worker="w", lease_seconds=LEASE)
            claimed = ClaimResponse()
            fill_work(session, row, claimed)
            size = len(claimed.SerializeToString())
        seconds.append(time.perf_counter() - began)
        assert len(claimed.train.trials) == 16
        assert size < 1 << 20
    assert len(seconds) == 3
    assert min(seconds) < 0.2, seconds
