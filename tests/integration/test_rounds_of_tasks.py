"""The round state machine with few-shot tasks: a self-edit may be of no use, and decides how it is trained on."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from rookery.internal.v1.job_service_pb2 import ClaimResponse
from rookery_coordinator import submissions
from rookery_coordinator.api.work import fill_work
from rookery_coordinator.database import Database
from rookery_coordinator.report import table
from rookery_coordinator.tables import Adaptation, Job, Kept, Round, Run, SelfEdit, Trial
from rookery_coordinator.types import AdaptationPlan, Reward, RunPlan, State, TrialState
from rookery_shared.domains import find_domain
from rookery_shared.errors import InvalidField
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.configuration import Configuration, Strategy, read_configuration, write_configuration
from rookery_shared.types import Context as TaughtContext
from rookery_shared.types import Demonstration, LoraRecipe, Question
from tests.integration.workers import Workers
from tests.integration.worlds import STUDENT, TEACHER, make_profiles, make_run

CONFIGURATION = write_configuration(
    Configuration(groups=("use_basic_augmentations",), strategy=Strategy.ALL, learning_rate=5e-4, epochs=1)
)


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
        for trial in train.train.trials:
            assert trial.recipe.learning_rate in (1e-4, 2e-4, 3e-4)
            assert (trial.recipe.epochs, trial.recipe.completion_only_loss) == (1, False)
            assert len(trial.examples) > 20, "augmented"
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
    assert not any(find_domain("few_shot").fault(contexts[0], text) for text in texts["random"])
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
