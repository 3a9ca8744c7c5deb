"""Against the ARC files published with the SEAL paper."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from rookery.grids import LONGEST_SIDE, from_text
from rookery.tasks import Task, load_tasks
from rookery_shared.grids.augmentations import GROUPS


def load(folder: Path, split: str, suffix: str = "") -> list[Task]:
    files = [folder / "few_shot" / f"arc-agi_{split}_{kind}{suffix}.json" for kind in ("challenges", "solutions")]
    return load_tasks(files[0], files[1])


@pytest.mark.parametrize(("split", "inputs"), [("training", 416), ("evaluation", 419)])
def test_all_tasks_load_with_their_solutions(seal_data: Path, split: str, inputs: int) -> None:
    tasks = load(seal_data, split)
    assert len(tasks) == 400
    assert sum(len(task.test) for task in tasks) == inputs
    assert all(pair.output for task in tasks for pair in (*task.train, *task.test))


@pytest.mark.parametrize(
    ("split", "suffix", "tasks", "inputs"),
    [
        ("training", "_filtered_1B_training_set", 12, 13),
        ("evaluation", "_filtered_1B_eval_set", 10, 11),
    ],
)
def test_the_filtered_sets_are_of_the_known_size(
    seal_data: Path, split: str, suffix: str, tasks: int, inputs: int
) -> None:
    loaded = load(seal_data, split, suffix)
    assert (len(loaded), sum(len(task.test) for task in loaded)) == (tasks, inputs)


def test_every_augmentation_of_every_training_task_is_undone_and_keeps_its_shape_rule(seal_data: Path) -> None:
    factors = {
        "reflect-below": (2, 1),
        "reflect-above": (2, 1),
        "reflect-right": (1, 2),
        "reflect-left": (1, 2),
        "resolution": (2, 2),
        "height": (2, 1),
        "width": (1, 2),
        "repeat-below": (2, 1),
        "repeat-beside": (1, 2),
        "repeat-both": (2, 2),
    }
    turned = {"rotate-90", "rotate-270", "transpose"}
    for task in load(seal_data, "training"):
        grids = [from_text(side) for pair in (*task.train, *task.test) for side in (pair.input, pair.output or "")]
        for augmentation in (a for group in GROUPS.values() for a in group):
            drawn = augmentation.draw(random.Random(task.name))
            first, _, then = augmentation.name.partition("+")
            down, across = factors.get(then or first, (1, 1))
            for grid in grids:
                made = drawn.apply(grid)
                sides = (len(grid[0]), len(grid)) if first in turned else (len(grid), len(grid[0]))
                assert (len(made), len(made[0])) == (sides[0] * down, sides[1] * across)
                assert drawn.undo(made) == grid
                assert len(grid) <= LONGEST_SIDE


def test_the_subset_of_seed_0_is_that_of_the_published_results(seal_data: Path) -> None:
    """The reference shuffles single test inputs and takes the first 9 of 11: that is how 10 tasks became 8."""
    inputs = [
        (task.name, number)
        for task in load(seal_data, "evaluation", "_filtered_1B_eval_set")
        for number in range(len(task.test))
    ]
    np.random.RandomState(0).shuffle(inputs)
    assert {name for name, _ in inputs} - {name for name, _ in inputs[:9]} == {"358ba94e", "af24b4cc"}
    assert len({name for name, _ in inputs[:9]}) == 8
