"""What was written in a run is listed with what came of it."""

from __future__ import annotations

import pytest

from rookery.cli.render import SELF_EDIT_COLUMNS, self_edit_row
from rookery.v1.run_service_pb2 import ListSelfEditsRequest, SelfEdit
from rookery_coordinator.api.self_edits import list_self_edits
from rookery_coordinator.database import Database
from rookery_coordinator.types import Reward, RewardShape, RunPlan
from rookery_shared.errors import InvalidField, UnknownResource
from tests.integration.workers import Workers
from tests.integration.worlds import make_profiles, make_run, some_contexts

TRIAL = SelfEdit.Trial
PLAN = RunPlan(rounds=1, self_edits=3, seeds=2, test_self_edits=1, reward=Reward.EXACT)


def listed(database: Database, run: str, *, size: int = 0, round_: int | None = None) -> list[SelfEdit]:
    """Page by page."""
    found: list[SelfEdit] = []
    token = ""
    while True:
        request = ListSelfEditsRequest(parent=run, round=round_, page_size=size, page_token=token)
        with database.read() as session:
            response = list_self_edits(session, request)
        found += response.self_edits
        assert not size or len(response.self_edits) <= size
        token = response.next_page_token
        if not token:
            return found


@pytest.fixture
def run(database: Database) -> str:
    """Of the self-edits of a train context one is of no use, one is worth the most, one lost a trial."""
    make_profiles(database)
    name = make_run(database, PLAN, contexts=some_contexts(2), test=2)
    workers = Workers(database)
    workers.fault = lambda domain, context, text: "of no kind" if text.startswith("worth 0.0") else ""
    workers.worth = lambda round_, context, position: [0.0, 0.5, 0.25][position] if round_.position == 2 else 0.1
    workers.fails = lambda context, self_edit, seed: (self_edit, seed) == (2, 1)
    workers.run_all()
    return name


def test_they_come_by_round_and_context_with_what_they_earned(database: Database, run: str) -> None:
    found = listed(database, run)
    tests, trained = ("test 0", "test 1"), ("context 0", "context 1")
    assert [(each.round, each.context, each.index) for each in found] == [
        *((round_, context, 0) for round_ in (0, 1) for context in tests),
        *((2, context, index) for context in trained for index in range(3)),
        *((3, context, 0) for context in tests),
    ]
    alone, useless, best, lucky = found[0], *found[4:7]
    assert (alone.text, [trial.state for trial in alone.trials]) == ("", [TRIAL.STATE_SCORED])
    assert (useless.fault, useless.reward, useless.gain, useless.kept) == ("of no kind", 0.0, 0.0, False)
    assert [(trial.state, trial.failure) for trial in useless.trials] == [(TRIAL.STATE_REFUSED, "of no kind")] * 2
    assert (best.text, best.fault, best.kept) == ("worth 0.5 in round 2", "", True)
    assert (best.reward, best.gain) == (0.5, 0.5)
    assert [(trial.score_before, trial.score_after) for trial in best.trials] == [(0.0, 0.5)] * 2
    assert all(trial.adapter.startswith("adapters/") for trial in best.trials)
    assert [(trial.state, trial.failure) for trial in lucky.trials] == [
        (TRIAL.STATE_SCORED, ""),
        (TRIAL.STATE_FAILED, "no luck"),
    ]
    assert (lucky.reward, lucky.trials[1].HasField("score_after")) == (0.25, False), "what failed counts for nothing"
    assert sum(each.kept for each in found) == 2


@pytest.mark.parametrize("size", [1, 4, 12])
def test_pages_are_the_list(database: Database, run: str, size: int) -> None:
    assert listed(database, run, size=size) == listed(database, run)


def test_those_of_one_round(database: Database, run: str) -> None:
    every = listed(database, run)
    for number in range(4):
        assert listed(database, run, size=2, round_=number) == [each for each in every if each.round == number]
    with pytest.raises(InvalidField, match="4 rounds"):
        listed(database, run, round_=4)
    with pytest.raises(UnknownResource):
        listed(database, "runs/none")


def test_before_anything_is_scored_there_is_no_reward(database: Database) -> None:
    make_profiles(database)
    first = listed(database, make_run(database, PLAN))
    assert {each.round for each in first} == {0}, "nobody has written yet"
    for each in first:
        assert [trial.state for trial in each.trials] == [TRIAL.STATE_PLANNED]
        assert not {"reward", "gain"} & {field.name for field, _ in each.ListFields()}
        assert [field.name for field, _ in each.trials[0].ListFields()] == ["state"]


def test_rewards_are_in_the_shape_of_the_plan(database: Database) -> None:
    make_profiles(database)
    plan = RunPlan(rounds=1, self_edits=2, reward=Reward.EXACT, reward_shape=RewardShape(clip=0.25))
    name = make_run(database, plan, train=1, test=0)
    workers = Workers(database)
    workers.worth = lambda round_, context, position: [0.125, 0.75][position]
    workers.run_all()
    assert [(each.reward, each.trials[0].score_after) for each in listed(database, name)] == [
        (0.125, 0.125),
        (0.25, 0.75),
    ]


def test_a_row_of_the_table_says_it_in_short(database: Database, run: str) -> None:
    rows = [self_edit_row(each) for each in listed(database, run, round_=2)]
    useless, best, lucky = rows[:3]
    assert all(len(row) == len(SELF_EDIT_COLUMNS) for row in rows)
    assert best == ("2", "context 0", "1", "2 scored", "0.500", "+0.500", "yes", "worth 0.5 in round 2")
    assert useless[3:] == ("2 refused", "0.000", "+0.000", "", "worth 0.0 in round 2\nof no use: of no kind")
    assert lucky[3] == "1 scored, 1 failed"
    long = self_edit_row(SelfEdit(text="a [bold] word\n" * 50))
    assert long[-1].startswith("a \\[bold] word a")
    assert long[-1].endswith("…")
    assert self_edit_row(SelfEdit(text="a\x1b[31mb\tc"))[-1].isprintable()
