"""Tasks to practise on, made of a task's own demonstrations: some are left out and asked for, under augmentations.

The rules are those of the SEAL paper's code, with its sets put in order, so that a seed names the practice.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rookery.grids import Grid
from rookery_shared.grids.augmentations import GROUPS, Drawn, draw_colours

MOST_TASKS = 250
_LEFT_OUT = (1, 2)
"""How many demonstrations are left out at a time."""

Side = TypeVar("Side")
"""A grid or a text."""


@dataclass(frozen=True, slots=True)
class Shown(Generic[Side]):
    """An input with its output."""

    input: Side
    output: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice(Generic[Side]):
    """Demonstrations, and a pair to find the output of."""

    demonstrations: tuple[Shown[Side], ...]
    asked: Shown[Side]

    @property
    def sides(self) -> Iterator[Side]:
        for shown in (*self.demonstrations, self.asked):
            yield from (shown.input, shown.output)


def most_tasks(demonstrations: int, groups: Sequence[str]) -> int:
    """No more come of so many demonstrations, whatever they hold: known without making any."""
    ways = (1 + sum(len(GROUPS[group]) for group in groups)) * (2 if groups else 1)  # in other colours as well
    plain = (
        count * math.comb(demonstrations, count) * (1 if demonstrations - count == 1 else 2)  # in another order as well
        for count in _LEFT_OUT
        if count < demonstrations
    )
    return min(sum(plain) * ways, MOST_TASKS)


def choose(tasks: Iterable[Practice[Side]], rng: random.Random) -> list[Practice[Side]]:
    """At most `MOST_TASKS` of them, in random order."""
    made = [*tasks]
    rng.shuffle(made)
    return made[:MOST_TASKS]


def tasks_on_grids(
    demonstrations: Sequence[Shown[Grid]],
    groups: Sequence[str],
    *,
    rng: random.Random,
    accepts: Callable[[Practice[Grid]], bool],
) -> Iterator[Practice[Grid]]:
    """All different tasks, each made when it is asked for; `accepts` may refuse one, as too large.

    `groups` are names in `GROUPS`. With any of them, colours are permuted as well; the order of the demonstrations
    always is. Too few demonstrations leave nothing.
    """
    return _different(_reordered(_augmented(demonstrations, groups, rng), rng), accepts)


def tasks_on_texts(
    demonstrations: Sequence[Shown[str]], *, rng: random.Random, accepts: Callable[[Practice[str]], bool]
) -> Iterator[Practice[str]]:
    """The same without augmentations, which texts have none of."""
    return _different(_reordered(_left_out(demonstrations), rng), accepts)


def _left_out(demonstrations: Sequence[Shown[Side]]) -> Iterator[Practice[Side]]:
    """One left out, and two; each of them is asked for, with what remains shown."""
    for count in _LEFT_OUT:
        for places in itertools.combinations(range(len(demonstrations)), count):
            rest = tuple(shown for place, shown in enumerate(demonstrations) if place not in places)
            if rest:
                for place in places:
                    yield Practice(demonstrations=rest, asked=demonstrations[place])


def _augmented(
    demonstrations: Sequence[Shown[Grid]], groups: Sequence[str], rng: random.Random
) -> Iterator[Practice[Grid]]:
    """As they are, then under every augmentation, then all of these in other colours."""
    plain = [*_left_out(demonstrations)]
    yield from plain
    made = [*plain]
    for augmentation in (augmentation for group in groups for augmentation in GROUPS[group]):
        for task in plain:
            made.append(_changed(task, augmentation.draw(rng)))
            yield made[-1]
    if groups:
        for task in made:
            yield _changed(task, draw_colours(rng))


def _changed(task: Practice[Grid], drawn: Drawn) -> Practice[Grid]:
    def change(shown: Shown[Grid]) -> Shown[Grid]:
        return Shown(drawn.apply(shown.input), drawn.apply(shown.output))

    return Practice(demonstrations=tuple(map(change, task.demonstrations)), asked=change(task.asked))


def _reordered(made: Iterable[Practice[Side]], rng: random.Random) -> Iterator[Practice[Side]]:
    """All of them, then all with their demonstrations in another order."""
    first: list[Practice[Side]] = []
    for task in made:
        first.append(task)
        yield task
    for task in first:
        shuffled = tuple(rng.sample(task.demonstrations, len(task.demonstrations)))
        yield Practice(demonstrations=shuffled, asked=task.asked)


def _different(made: Iterable[Practice[Side]], accepts: Callable[[Practice[Side]], bool]) -> Iterator[Practice[Side]]:
    seen: set[Practice[Side]] = set()
    for task in made:
        if task not in seen:
            seen.add(task)
            if accepts(task):
                yield task
