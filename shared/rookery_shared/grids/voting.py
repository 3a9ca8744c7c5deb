"""From many predictions of one grid to the attempts that are made at it, by the votes of the SEAL paper's code.

Within each transformation of the question its predictions elect a majority, whole and by rows and columns; then the
elected vote among all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rookery.grids import Grid

ATTEMPTS = 2


def elect(predictions: Mapping[str, Sequence[Grid]], *, attempts: int = ATTEMPTS) -> list[Grid]:
    """At most so many different grids, the likeliest first; none without predictions.

    `predictions` are by the name of the transformation that was asked, each already changed back. Of equally many votes
    the grid with more predictions wins, then the one that was predicted first.
    """
    candidates = Counter(candidate for grids in predictions.values() for candidate in _candidates(grids))
    predicted = Counter(grid for grids in predictions.values() for grid in grids)
    order = {grid: place for place, grid in enumerate(candidates)}
    ranked = sorted(candidates, key=lambda grid: (-candidates[grid], -predicted[grid], order[grid]))
    return ranked[:attempts]


def _candidates(grids: Sequence[Grid]) -> Iterator[Grid]:
    """The predictions of one transformation that are frequent as a whole, by rows and by columns."""
    if not grids:
        return
    yield from (grid for grid, _ in Counter(grids).most_common(ATTEMPTS))
    yield by_rows(grids)
    yield by_columns(grids)


def by_rows(grids: Sequence[Grid]) -> Grid:
    """The most frequent row in each place, among the grids of the most frequent shape."""
    shape = Counter((len(grid), len(grid[0])) for grid in grids).most_common(1)[0][0]
    alike = [grid for grid in grids if (len(grid), len(grid[0])) == shape]
    return tuple(Counter(rows).most_common(1)[0][0] for rows in zip(*alike, strict=True))


def by_columns(grids: Sequence[Grid]) -> Grid:
    """The most frequent column in each place, among the grids of the most frequent shape."""
    turned = by_rows([tuple(zip(*grid, strict=True)) for grid in grids])
    return tuple(zip(*turned, strict=True))
