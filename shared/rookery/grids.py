"""A grid, and its text: a line for each row, digits with spaces between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Grid: TypeAlias = tuple[tuple[int, ...], ...]
"""Rows of cells. All rows are equally long, there is at least one cell, and a cell is a colour of 0 to 9."""

COLOURS = 10
LONGEST_SIDE = 30
"""Rows, or cells of a row, as in ARC."""


class NotAGrid(ValueError):
    """Says what is wrong with it."""


def make_grid(rows: object) -> Grid:
    """From JSON's lists of numbers. Raises NotAGrid."""
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise NotAGrid("it is not a list of rows")
    for number, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, str) or not row:
            raise NotAGrid(f"row {number} is not a list of cells")
        if len(row) != len(rows[0]):
            raise NotAGrid(f"row {number} has {len(row)} cells, row 0 has {len(rows[0])}")
        for cell in row:
            if type(cell) is not int or not 0 <= cell < COLOURS:
                raise NotAGrid(f"row {number} holds {cell!r}, which is no colour of 0 to {COLOURS - 1}")
    if not fits(rows):
        raise NotAGrid(f"it is {len(rows)} x {len(rows[0])}, larger than {LONGEST_SIDE} x {LONGEST_SIDE}")
    return tuple(tuple(row) for row in rows)


def fits(rows: Sequence[Sequence[int]]) -> bool:
    """Whether it is no larger than ARC's largest."""
    return len(rows) <= LONGEST_SIDE and len(rows[0]) <= LONGEST_SIDE


def to_text(grid: Grid) -> str:
    return "\n".join(" ".join(map(str, row)) for row in grid)


def from_text(text: str) -> Grid:
    """White space around the text and at the ends of lines does not count. Raises NotAGrid."""
    lines = text.strip().splitlines()
    try:
        rows = [[_cell(cell) for cell in line.split()] for line in lines]
    except ValueError as error:
        raise NotAGrid(str(error)) from None
    return make_grid(rows)


def _cell(text: str) -> int:
    if len(text) != 1 or text not in "0123456789":
        raise ValueError(f"{text!r} is no colour of 0 to {COLOURS - 1}")
    return int(text)
