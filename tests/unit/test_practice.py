"""Practice tasks made of a task's demonstrations."""

from __future__ import annotations

from rookery.grids import Grid
from rookery_shared.grids.augmentations import GROUPS
from rookery_shared.grids.practice import MOST_TASKS, Practice, Shown, make_practice


def shown(colour: int) -> Shown:
    one: Grid = ((colour, 0),)
    other: Grid = ((0, colour),)
    return Shown(one, other)


DEMONSTRATIONS = [shown(colour) for colour in (1, 2, 3)]


def test_one_and_two_are_left_out_and_the_rest_is_shown_in_any_order() -> None:
    made = make_practice(DEMONSTRATIONS, [], seed=0)
    seen = {(frozenset(task.demonstrations), task.asked) for task in made}
    one = {(frozenset(DEMONSTRATIONS) - {asked}, asked) for asked in DEMONSTRATIONS}
    two = {(frozenset([kept]), asked) for kept in DEMONSTRATIONS for asked in DEMONSTRATIONS if kept != asked}
    assert seen == one | two
    assert len(made) >= len(seen)
    assert len({*made}) == len(made)


def test_every_grid_of_a_task_is_changed_alike() -> None:
    """The rule, that the coloured cell moves to the other end, holds after every basic change or is turned with it."""
    for task in make_practice(DEMONSTRATIONS, ["use_size_augmentations"], seed=1):
        for pair in (*task.demonstrations, task.asked):
            assert pair.output == tuple(row[::-1] for row in pair.input)


def test_a_seed_names_the_practice() -> None:
    groups = [*GROUPS]
    assert make_practice(DEMONSTRATIONS, groups, seed=3) == make_practice(DEMONSTRATIONS, groups, seed=3)
    assert make_practice(DEMONSTRATIONS, groups, seed=3) != make_practice(DEMONSTRATIONS, groups, seed=4)


def test_limits() -> None:
    many = make_practice([shown(colour) for colour in range(1, 9)], [*GROUPS], seed=0)
    assert len(many) == MOST_TASKS
    large = Shown(((1,) * 20,), ((2,) * 20,))
    wide = make_practice([large, large, large], ["use_repeat_augmentations"], seed=0)
    assert wide
    assert all(len(grid[0]) <= 30 for task in wide for grid in task.grids)

    def short(task: Practice) -> bool:
        return len(task.demonstrations) == 1

    assert all(map(short, make_practice(DEMONSTRATIONS, [], seed=0, accepts=short)))
    assert make_practice(DEMONSTRATIONS[:1], [*GROUPS], seed=0) == [], "nothing can be left out"
