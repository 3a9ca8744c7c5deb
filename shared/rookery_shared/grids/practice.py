"""Tasks to practise on, made of a task's own demonstrations: some are left out and asked for, under augmentations.

The rules are those of the SEAL paper's code, with its sets put in order, so that a seed names the practice.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rookery.grids import Grid
from rookery_shared.grids.augmentations import GROUPS, Drawn, draw_colours

MOST_TASKS = 250

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


def practice_on_grids(
    demonstrations: Sequence[Shown[Grid]],
    groups: Sequence[str],
    *,
    seed: int,
    accepts: Callable[[Practice[Grid]], bool],
) -> list[Practice[Grid]]:
    """At most `MOST_TASKS` different tasks, in random order; `accepts` may refuse one, as too large.

    `groups` are names in `GROUPS`. With any of them, colours are permuted as well; the order of the demonstrations
    always is. Too few demonstrations leave nothing.
    """
    rng = random.Random(seed)
    plain = _left_out(demonstrations)
    augmentations = [augmentation for group in groups for augmentation in GROUPS[group]]
    made = plain + [_changed(task, augmentation.draw(rng)) for augmentation in augmentations for task in plain]
    if groups:
        made += [_changed(task, draw_colours(rng)) for task in made]
    return _chosen(made, rng, accepts)


def practice_on_texts(
    demonstrations: Sequence[Shown[str]], *, seed: int, accepts: Callable[[Practice[str]], bool]
) -> list[Practice[str]]:
    """The same without augmentations, which texts have none of."""
    return _chosen(_left_out(demonstrations), random.Random(seed), accepts)


def _left_out(demonstrations: Sequence[Shown[Side]]) -> list[Practice[Side]]:
    """One left out, and two; each of them is asked for, with what remains shown."""
    made: list[Practice[Side]] = []
    for count in (1, 2):
        for places in itertools.combinations(range(len(demonstrations)), count):
            rest = tuple(shown for place, shown in enumerate(demonstrations) if place not in places)
            if rest:
                made += [Practice(demonstrations=rest, asked=demonstrations[place]) for place in places]
    return made


def _changed(task: Practice[Grid], drawn: Drawn) -> Practice[Grid]:
    def change(shown: Shown[Grid]) -> Shown[Grid]:
        return Shown(drawn.apply(shown.input), drawn.apply(shown.output))

    return Practice(demonstrations=tuple(map(change, task.demonstrations)), asked=change(task.asked))


def _chosen(
    made: Sequence[Practice[Side]], rng: random.Random, accepts: Callable[[Practice[Side]], bool]
) -> list[Practice[Side]]:
    """With their demonstrations in other orders as well."""
    shuffled = [
        Practice(
            demonstrations=tuple(rng.sample(task.demonstrations, len(task.demonstrations))),
            asked=task.asked,
        )
        for task in made
    ]
    unique = [task for task in dict.fromkeys([*made, *shuffled]) if accepts(task)]
    rng.shuffle(unique)
    return unique[:MOST_TASKS]
