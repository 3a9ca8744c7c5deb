"""Practice tasks made of a task's demonstrations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from rookery.grids import Grid, fits
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.practice import (
    MOST_TASKS,
    Practice,
    Shown,
    choose,
    most_tasks,
    tasks_on_grids,
    tasks_on_texts,
)


def fit(task: Practice[Grid]) -> bool:
    return all(map(fits, task.sides))


def practice(demonstrations: Sequence[Shown[Grid]], groups: Sequence[str], *, seed: int) -> list[Practice[Grid]]:
    rng = random.Random(seed)
    return choose(tasks_on_grids(demonstrations, groups, rng=rng, accepts=fit), rng)


def shown(colour: int) -> Shown[Grid]:
    one: Grid = ((colour, 0),)
    other: Grid = ((0, colour),)
    return Shown(one, other)


DEMONSTRATIONS = [shown(colour) for colour in (1, 2, 3)]


def test_one_and_two_are_left_out_and_the_rest_is_shown_in_any_order() -> None:
    made = practice(DEMONSTRATIONS, [], seed=0)
    seen = {(frozenset(task.demonstrations), task.asked) for task in made}
    one = {(frozenset(DEMONSTRATIONS) - {asked}, asked) for asked in DEMONSTRATIONS}
    two = {(frozenset([kept]), asked) for kept in DEMONSTRATIONS for asked in DEMONSTRATIONS if kept != asked}
    assert seen == one | two
    assert len(made) >= len(seen)
    assert len({*made}) == len(made)


def test_every_grid_of_a_task_is_changed_alike() -> None:
    """The rule, that the coloured cell moves to the other end, holds after every basic change or is turned with it."""
    for task in practice(DEMONSTRATIONS, ["use_size_augmentations"], seed=1):
        for pair in (*task.demonstrations, task.asked):
            assert pair.output == tuple(row[::-1] for row in pair.input)


def test_a_seed_names_the_practice() -> None:
    groups = [*GROUPS]
    assert practice(DEMONSTRATIONS, groups, seed=3) == practice(DEMONSTRATIONS, groups, seed=3)
    assert practice(DEMONSTRATIONS, groups, seed=3) != practice(DEMONSTRATIONS, groups, seed=4)


def test_limits() -> None:
    many = practice([shown(colour) for colour in range(1, 9)], [*GROUPS], seed=0)
    assert len(many) == MOST_TASKS
    large: Shown[Grid] = Shown(((1,) * 20,), ((2,) * 20,))
    wide = practice([large, large, large], ["use_repeat_augmentations"], seed=0)
    assert wide
    assert all(len(grid[0]) <= 30 for task in wide for grid in task.sides)

    assert practice(DEMONSTRATIONS[:1], [*GROUPS], seed=0) == [], "nothing can be left out"


def test_tasks_are_made_when_they_are_asked_for() -> None:
    looked_at: list[Practice[Grid]] = []

    def look(task: Practice[Grid]) -> bool:
        looked_at.append(task)
        return True

    tasks = tasks_on_grids(DEMONSTRATIONS, [*GROUPS], rng=random.Random(0), accepts=look)
    assert [*itertools.islice(tasks, 20)] == looked_at
    assert len(looked_at) == 20
    assert len([*tasks]) > 200


@pytest.mark.parametrize(
    "groups", [[], ["use_size_augmentations"], ["use_repeat_augmentations", "use_chain_augmentations"]]
)
@pytest.mark.parametrize("demonstrations", range(5))
def test_the_most_that_can_come_of_demonstrations_is_known_beforehand(demonstrations: int, groups: list[str]) -> None:
    some = [shown(colour + 1) for colour in range(demonstrations)]
    texts = [Shown(str(colour), str(-colour)) for colour in range(demonstrations)]
    most = most_tasks(demonstrations, groups)
    assert (most > 0) == (demonstrations > 1)
    assert len(practice(some, groups, seed=0)) <= most <= MOST_TASKS
    assert len([*tasks_on_texts(texts, rng=random.Random(0), accepts=lambda _: True)]) <= most


def test_two_demonstrations_have_one_order() -> None:
    """What is left of them after one is left out."""
    pairs = [shown(1), shown(2)]
    assert most_tasks(2, []) == len(practice(pairs, [], seed=0)) == 2
    assert most_tasks(2, ["use_size_augmentations"]) == 2 * (1 + len(GROUPS["use_size_augmentations"])) * 2


def test_texts_are_left_out_like_grids() -> None:
    pairs = [Shown("cat", "tac"), Shown("dog", "god"), Shown("pot", "top")]
    made = [*tasks_on_texts(pairs, rng=random.Random(0), accepts=lambda task: task.asked.input != "pot")]
    assert {task.asked for task in made} == {*pairs[:2]}
    assert all(task.asked not in task.demonstrations for task in made)
