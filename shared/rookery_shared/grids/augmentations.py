"""Transformations of grids that make new tasks of a task. The groups are those of the SEAL paper's few-shot domain.

Each is drawn for a task with a random generator, so that all grids of the task are changed alike. Each has its inverse.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from rookery.grids import COLOURS, Grid

Change = Callable[[Grid], Grid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A transformation with its random choices made."""

    name: str
    apply: Change
    undo: Change
    """Brings back what `apply` was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    name: str
    draw: Callable[[random.Random], Drawn]


# --- what is done to a grid ------------------------------------------------------------------------------------------


def rotate(grid: Grid) -> Grid:
    """A quarter to the left, as numpy.rot90."""
    return tuple(zip(*grid, strict=True))[::-1]


def flip_rows(grid: Grid) -> Grid:
    """Upside down."""
    return grid[::-1]


def flip_columns(grid: Grid) -> Grid:
    """Left to right."""
    return tuple(row[::-1] for row in grid)


def transpose(grid: Grid) -> Grid:
    return tuple(zip(*grid, strict=True))


def translate(grid: Grid, *, down: int, right: int) -> Grid:
    """What leaves on one side comes in on the other."""
    rows, columns = len(grid), len(grid[0])
    return tuple(tuple(grid[(y - down) % rows][(x - right) % columns] for x in range(columns)) for y in range(rows))


def enlarge(grid: Grid, *, rows: int = 1, columns: int = 1) -> Grid:
    """Each cell becomes a block of so many rows and columns."""
    wide = (tuple(cell for cell in row for _ in range(columns)) for row in grid)
    return tuple(row for row in wide for _ in range(rows))


def shrink(grid: Grid, *, rows: int = 1, columns: int = 1) -> Grid:
    """The first cell of each block."""
    return tuple(row[::columns] for row in grid[::rows])


def repeat(grid: Grid, *, rows: int = 1, columns: int = 1) -> Grid:
    """The whole grid, so many times below and beside itself."""
    return tuple(row * columns for row in grid) * rows


def recolour(grid: Grid, colours: Sequence[int]) -> Grid:
    return tuple(tuple(map(colours.__getitem__, row)) for row in grid)


# --- the augmentations -----------------------------------------------------------------------------------------------


def _fixed(name: str, apply: Change, undo: Change) -> Augmentation:
    drawn = Drawn(name=name, apply=apply, undo=undo)
    return Augmentation(name=name, draw=lambda _: drawn)


def _turned(times: int) -> Change:
    return lambda grid: reduce(lambda turned, _: rotate(turned), range(times), grid)


def _draw_translation(rng: random.Random) -> Drawn:
    down, right = rng.randint(1, 4), rng.randint(1, 4)
    return Drawn(
        name=f"translate-{down}-{right}",
        apply=lambda grid: translate(grid, down=down, right=right),
        undo=lambda grid: translate(grid, down=-down, right=-right),
    )


def draw_colours(rng: random.Random) -> Drawn:
    """Any colour may become any other."""
    return recolouring(rng.sample(range(COLOURS), COLOURS))


def recolouring(colours: Sequence[int]) -> Drawn:
    """Each colour becomes the one in its place; each occurs once."""
    back = [colours.index(colour) for colour in range(COLOURS)]
    return Drawn(
        name="colours-" + "".join(map(str, colours)),
        apply=lambda grid: recolour(grid, colours),
        undo=lambda grid: recolour(grid, back),
    )


def _top(grid: Grid) -> Grid:
    return grid[: len(grid) // 2]


def _left(grid: Grid) -> Grid:
    return tuple(row[: len(row) // 2] for row in grid)


_ROTATIONS = [_fixed(f"rotate-{90 * times}", _turned(times), _turned(4 - times)) for times in (1, 2, 3)]
_FLIPS = [_fixed("flip-rows", flip_rows, flip_rows), _fixed("flip-columns", flip_columns, flip_columns)]
_TRANSPOSE = _fixed("transpose", transpose, transpose)
_REFLECTIONS = [
    _fixed("reflect-below", lambda grid: grid + flip_rows(grid), _top),
    _fixed("reflect-above", lambda grid: flip_rows(grid) + grid, lambda grid: flip_rows(_top(grid))),
    _fixed("reflect-right", lambda grid: tuple(row + row[::-1] for row in grid), _left),
    _fixed("reflect-left", lambda grid: tuple(row[::-1] + row for row in grid), lambda grid: flip_columns(_left(grid))),
]
_TRANSLATION = Augmentation(name="translate", draw=_draw_translation)


def _sized(name: str, *, rows: int, columns: int) -> Augmentation:
    return _fixed(
        name,
        lambda grid: enlarge(grid, rows=rows, columns=columns),
        lambda grid: shrink(grid, rows=rows, columns=columns),
    )


_RESOLUTION = _sized("resolution", rows=2, columns=2)


def _then_enlarged(first: Augmentation) -> Augmentation:
    def draw(rng: random.Random) -> Drawn:
        one, two = first.draw(rng), _RESOLUTION.draw(rng)
        return Drawn(
            name=f"{one.name}+{two.name}",
            apply=lambda grid: two.apply(one.apply(grid)),
            undo=lambda grid: one.undo(two.undo(grid)),
        )

    return Augmentation(name=f"{first.name}+{_RESOLUTION.name}", draw=draw)


def _repeated(name: str, *, rows: int, columns: int) -> Augmentation:
    def first(grid: Grid) -> Grid:
        return tuple(row[: len(row) // columns] for row in grid[: len(grid) // rows])

    return _fixed(name, lambda grid: repeat(grid, rows=rows, columns=columns), first)


GROUPS: Mapping[str, Sequence[Augmentation]] = {
    "use_basic_augmentations": [*_ROTATIONS, *_FLIPS, *_REFLECTIONS, _TRANSLATION, _TRANSPOSE],
    "use_size_augmentations": [
        _RESOLUTION,
        _sized("height", rows=2, columns=1),
        _sized("width", rows=1, columns=2),
    ],
    "use_chain_augmentations": [_then_enlarged(first) for first in (*_ROTATIONS, *_FLIPS, _TRANSPOSE)],
    "use_repeat_augmentations": [
        _repeated("repeat-below", rows=2, columns=1),
        _repeated("repeat-beside", rows=1, columns=2),
        _repeated("repeat-both", rows=2, columns=2),
    ],
}
"""By the flag of a self-edit that turns a group on."""

QUERIES: Sequence[Augmentation] = [_TRANSPOSE, *_FLIPS, *_ROTATIONS[:2]]
"""What a test input is changed by to be asked again; the answers are changed back."""
