"""The texts that the grid model is pre-trained on, as the few-shot domain writes them.

Owns the mixture: puzzles to be solved from their demonstrations, of known rules only, and configurations that a teacher
writes. These are drawn without a look at the task, all kinds with equal chances, and so are mostly poor: that some are
better is for reinforcement learning to find. Some puzzles are changed as practice changes them, so that practice need
not teach what a changed puzzle looks like; but none in a way that makes a known rule a new one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from rookery.grids import COLOURS, Grid, to_text
from rookery_shared.domains import find_domain
from rookery_shared.domains.few_shot import asking
from rookery_shared.grids.augmentations import GROUPS, Augmentation, Drawn, recolouring
from rookery_shared.grids.configuration import Configuration, draw_configuration, write_configuration
from rookery_shared.grids.practice import Shown
from rookery_tiny.documents import Document
from rookery_tiny.grids.puzzles import (
    EMPTY,
    LARGEST_SIDE,
    SIDES,
    Known,
    Paints,
    Puzzle,
    Rule,
    as_context,
    draw_puzzle,
    random_grid,
    rules,
)

STYLE = "configuration"
AUGMENTATIONS: Sequence[Augmentation] = [
    augmentation for group in GROUPS.values() for augmentation in group if augmentation.name != "translate"
]
"""All but translation: a mirror between two moves is a mirror and a move, which may be a new rule."""
LARGE = range(min(SIDES), LARGEST_SIDE + 1)
"""Sides of all puzzles, a run's and larger ones."""
MOST_CELLS = 240
"""Of a document, with the ends of lines: nearly its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson(Document):
    """A document of the corpus, with what it was made of."""

    puzzle: Puzzle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Shares, by count."""

    configuration: float = 0.08
    """Documents that a teacher writes; the others are puzzles."""
    copied: float = 0.02
    """Puzzles whose outputs are their inputs."""
    single: float = 0.5
    """Puzzles with a rule of one step."""
    large: float = 0.05
    """Puzzles with larger sides than a run's."""
    recoloured: float = 0.25
    """Puzzles with their colours permuted, but for empty cells."""
    augmented: float = 0.1
    """Puzzles that are changed as a practice task is."""


def copied(rng: random.Random) -> Puzzle:
    """Its outputs are its inputs: only copying from another place predicts them."""
    side, count = rng.choice(SIDES), rng.randint(1, 3)
    grids = [random_grid(rng, side, coloured=0.85) for _ in range(count + 1)]
    pairs = tuple(Shown(grid, grid) for grid in grids)
    return Puzzle(rule=Rule(()), paints=Paints(old=1, new=2, fill=3), demonstrations=pairs[:-1], tests=pairs[-1:])


def puzzle(mixture: Mixture, rng: random.Random) -> Lesson:
    """Of a known rule."""
    if rng.random() < mixture.copied:
        return solved(copied(rng))
    return solved(changed(known_puzzle(mixture, rng), mixture, rng))


def known_puzzle(mixture: Mixture, rng: random.Random) -> Puzzle:
    single = rng.random() < mixture.single
    rule = rng.choice([rule for rule in rules(Known.PRETRAINING) if (len(rule.steps) == 1) == single])
    sides = LARGE if rng.random() < mixture.large else SIDES
    return draw_puzzle(rule, rng, demonstrations=rng.randint(2, 5), tests=1, sides=sides)


def changed(puzzle: Puzzle, mixture: Mixture, rng: random.Random) -> Puzzle:
    """Perhaps in other colours and perhaps under an augmentation; without the demonstrations that make it too long.

    An augmentation that leaves no room for any demonstration is left out.
    """
    if rng.random() < mixture.augmented:
        augmented = _under(rng.choice(AUGMENTATIONS).draw(rng), puzzle)
        puzzle = augmented if 2 * _longest(augmented) <= MOST_CELLS else puzzle
    if rng.random() < mixture.recoloured:
        puzzle = _under(draw_paints(rng), puzzle)
    return shortened(puzzle)


def draw_paints(rng: random.Random) -> Drawn:
    """Other colours, but for empty cells: if these had another, a rule that fills them would be one that recolours."""
    painted = [colour for colour in range(COLOURS) if colour != EMPTY]
    others = iter(rng.sample(painted, len(painted)))
    return recolouring([EMPTY if colour == EMPTY else next(others) for colour in range(COLOURS)])


def shortened(puzzle: Puzzle) -> Puzzle:
    """Without the demonstrations that make it too long."""
    room = MOST_CELLS // _longest(puzzle)
    return replace(puzzle, demonstrations=puzzle.demonstrations[: room - 1])


def solved(puzzle: Puzzle) -> Lesson:
    """As the domain asks it, with the answer."""
    shown = [Shown(to_text(pair.input), to_text(pair.output)) for pair in puzzle.demonstrations]
    test, *_ = puzzle.tests
    return Lesson(prompt=asking(shown, to_text(test.input)), completion=to_text(test.output), puzzle=puzzle)


def any_configuration(rng: random.Random) -> str:
    """All kinds with equal chances: what pre-training reads."""
    return in_digits(draw_configuration(rng))


def configuration(
    mixture: Mixture, rng: random.Random, *, write: Callable[[random.Random], str] = any_configuration
) -> Lesson:
    """As the domain asks a teacher, with an answer that is drawn without a look at the task."""
    task = as_context(shortened(known_puzzle(mixture, rng)), title="")
    prompt = find_domain("few_shot").self_edit_prompt(task, style=STYLE)
    return Lesson(prompt=prompt, completion=write(rng))


def in_digits(configuration: Configuration) -> str:
    """Written without exponents: a text that is held to the schema has none."""
    written, rate = write_configuration(configuration), configuration.learning_rate
    return written.replace(f'"learning_rate": {rate!r}', f'"learning_rate": {rate:.6f}'.rstrip("0"))


def draw_document(mixture: Mixture, rng: random.Random) -> Lesson:
    drawn = configuration if rng.random() < mixture.configuration else puzzle
    return drawn(mixture, rng)


def _under(drawn: Drawn, puzzle: Puzzle) -> Puzzle:
    change = partial(_changed, drawn)
    paints = {name: drawn.apply(((colour,),))[0][0] for name, colour in asdict(puzzle.paints).items()}
    return replace(
        puzzle,
        paints=Paints(**paints),
        demonstrations=tuple(map(change, puzzle.demonstrations)),
        tests=tuple(map(change, puzzle.tests)),
    )


def _changed(drawn: Drawn, shown: Shown[Grid]) -> Shown[Grid]:
    return Shown(drawn.apply(shown.input), drawn.apply(shown.output))


def _longest(puzzle: Puzzle) -> int:
    """Cells of the largest pair, with the ends of lines."""
    pairs = (*puzzle.demonstrations, *puzzle.tests)
    return max(sum(len(grid) * (len(grid[0]) + 1) for grid in (pair.input, pair.output)) for pair in pairs)
