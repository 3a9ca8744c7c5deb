"""Tasks to practise on, made of a task's own demonstrations: some are left out and asked for, under augmentations.

The rules are those of the SEAL paper's code, with its sets put in order, so that a seed names the practice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rookery.grids import Grid, fits
from rookery_shared.grids.augmentations import GROUPS, Drawn, draw_colours

MOST_TASKS = 250


@dataclass(frozen=True, slots=True)
class Shown:
    """An input with its output."""

    input: Grid
    output: Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """Demonstrations, and a pair to find the output of."""

    demonstrations: tuple[Shown, ...]
    asked: Shown

    @property
    def grids(self) -> Iterator[Grid]:
        for shown in (*self.demonstrations, self.asked):
            yield from (shown.input, shown.output)


def make_practice(
    demonstrations: Sequence[Shown],
    groups: Sequence[str],
    *,
    seed: int,
    most: int = MOST_TASKS,
    accepts: Callable[[Practice], bool] = lambda _: True,
) -> list[Practice]:
    """At most `most` different tasks, in random order. `accepts` may refuse one, as too long for a model.

    `groups` are names in `GROUPS`. With any of them, colours are permuted as well; the order of the demonstrations
    always is. A task with a grid larger than ARC's largest is left out. Too few demonstrations leave nothing.
    """
    rng = random.Random(seed)
    plain = [*_left_out(demonstrations, 1), *_left_out(demonstrations, 2)]
    augmentations = [augmentation for group in groups for augmentation in GROUPS[group]]
    made = [*plain]
    made += [_changed(task, augmentation.draw(rng)) for augmentation in augmentations for task in plain]
    if groups:
        made += [_changed(task, draw_colours(rng)) for task in [*made]]
    made += [_shuffled(task, rng) for task in [*made]]
    unique = [task for task in dict.fromkeys(made) if all(map(fits, task.grids)) and accepts(task)]
    rng.shuffle(unique)
    return unique[:most]


def _left_out(demonstrations: Sequence[Shown], count: int) -> Iterator[Practice]:
    """Each so many left out; each of them is asked for, with what remains shown."""
    for places in itertools.combinations(range(len(demonstrations)), count):
        rest = tuple(shown for place, shown in enumerate(demonstrations) if place not in places)
        if rest:
            yield from (Practice(demonstrations=rest, asked=demonstrations[place]) for place in places)


def _changed(task: Practice, drawn: Drawn) -> Practice:
    def change(shown: Shown) -> Shown:
        return Shown(drawn.apply(shown.input), drawn.apply(shown.output))

    return Practice(demonstrations=tuple(map(change, task.demonstrations)), asked=change(task.asked))


def _shuffled(task: Practice, rng: random.Random) -> Practice:
    order = rng.sample(task.demonstrations, len(task.demonstrations))
    return Practice(demonstrations=tuple(order), asked=task.asked)
