"""The micro-world of grids: rules, which of them a model knows, and puzzles that follow them. Torch-free.

A rule is one step, such as a mirror, or two: first a step that changes where cells are, then any other. Half of all
rules are known from pre-training, the single steps among them; a quarter each is for a run's training and for its test,
which have those of them that practice can teach (`LEARNABLE`). Rules that are the same but for a turn or a mirror of
the grid are on one side of that division, since a test input is asked in turned and mirrored ways too; so are those
that are the same on grids of some size, as two moves to the right and one to the left are on three columns. All is
drawn from a `random.Random`, so a seed names a puzzle.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import product

from rookery.grids import COLOURS, Grid, to_text
from rookery_shared.grids.augmentations import flip_columns, flip_rows, recolour, rotate, translate, transpose
from rookery_shared.grids.practice import Shown
from rookery_shared.types import Context, Demonstration, Question

EMPTY = 0
"""The colour of a cell that has none."""
SIDES = (3,)
"""Of the inputs of a run's puzzles, which are squares."""
LARGEST_SIDE = 6
"""Of any puzzle's."""
MOST_DRAWS = 1_000


class Family(StrEnum):
    """Steps that differ in their direction only."""

    MIRROR = "mirror"
    TURN = "turn"
    HALF_TURN = "half-turn"
    TRANSPOSE = "transpose"
    MOVE = "move"
    FALL = "fall"
    EXTEND = "extend"
    CROP = "crop"
    RECOLOUR = "recolour"
    FILL = "fill"


PLACING = (Family.MIRROR, Family.TURN, Family.HALF_TURN, Family.TRANSPOSE, Family.MOVE)
"""They bring cells to other places, and change nothing else. The first of two steps is one of these."""
LEARNABLE = frozenset({*PLACING, Family.CROP})
"""Of rules of these steps alone, a run's. Of others practice teaches the model few: after 192 steps on all
layers, of basic augmentations at a rate of 2e-3, it solved 19 of 40 puzzles of these, new to it, and 3 of 62 of all
others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paints:
    """The colours that a puzzle's rule is about, all different."""

    old: int
    new: int
    fill: int


Change = Callable[[Grid, Paints], Grid]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    name: str
    family: Family
    apply: Change


# --- steps -----------------------------------------------------------------------------------------------------------


def turned(grid: Grid, quarters: int) -> Grid:
    """So many quarters to the left."""
    for _ in range(quarters % 4):
        grid = rotate(grid)
    return grid


def fall_left(grid: Grid) -> Grid:
    """Coloured cells move to the left as far as they can, and stay in order."""
    rows = [[cell for cell in row if cell != EMPTY] for row in grid]
    return tuple(tuple(row + [EMPTY] * (len(grid[0]) - len(row))) for row in rows)


def extend_right(grid: Grid) -> Grid:
    """A coloured cell colours the empty ones to its right."""
    made: list[tuple[int, ...]] = []
    for row in grid:
        last, cells = EMPTY, []
        for cell in row:
            last = cell if cell != EMPTY else last
            cells.append(last)
        made.append(tuple(cells))
    return tuple(made)


def crop_left(grid: Grid) -> Grid:
    """Without its first column."""
    return tuple(row[1:] for row in grid)


def exchange(grid: Grid, old: int, new: int) -> Grid:
    """One colour becomes another."""
    return recolour(grid, [new if colour == old else colour for colour in range(COLOURS)])


def _placing(name: str, family: Family, change: Callable[[Grid], Grid]) -> Step:
    return Step(name=name, family=family, apply=lambda grid, paints: change(grid))


def _towards(change: Callable[[Grid], Grid], quarters: int) -> Change:
    """The change in a grid that is turned for it, and turned back."""
    return lambda grid, paints: turned(change(turned(grid, quarters)), -quarters)


def _directed(family: Family, change: Callable[[Grid], Grid], directions: Sequence[str]) -> Iterator[Step]:
    """`directions` are those of the change after 0 to 3 quarters to the left, each undone."""
    for quarters, direction in enumerate(directions):
        yield Step(name=f"{family}-{direction}", family=family, apply=_towards(change, quarters))


def _move_left(grid: Grid) -> Grid:
    """What leaves on one side comes in on the other."""
    return translate(grid, down=0, right=-1)


# A grid that was turned a quarter to the left has its top where its left was: what goes left there goes up here.
_FROM_LEFT, _FROM_RIGHT = ("left", "up", "right", "down"), ("right", "down", "left", "up")

STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        _placing("mirror-columns", Family.MIRROR, flip_columns),
        _placing("mirror-rows", Family.MIRROR, flip_rows),
        _placing("turn-left", Family.TURN, rotate),
        _placing("turn-right", Family.TURN, lambda grid: turned(grid, 3)),
        _placing("half-turn", Family.HALF_TURN, lambda grid: turned(grid, 2)),
        _placing("transpose", Family.TRANSPOSE, transpose),
        _placing("transpose-other", Family.TRANSPOSE, lambda grid: turned(transpose(grid), 2)),
        *_directed(Family.MOVE, _move_left, _FROM_LEFT),
        *_directed(Family.FALL, fall_left, _FROM_LEFT),
        *_directed(Family.EXTEND, extend_right, _FROM_RIGHT),
        *_directed(Family.CROP, crop_left, _FROM_LEFT),
        Step(name="recolour", family=Family.RECOLOUR, apply=lambda grid, p: exchange(grid, p.old, p.new)),
        Step(name="fill", family=Family.FILL, apply=lambda grid, p: exchange(grid, EMPTY, p.fill)),
    )
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Names of steps, one or two, the first to be done first."""

    steps: tuple[str, ...]

    @property
    def name(self) -> str:
        return " then ".join(self.steps)

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(STEPS[step].family for step in self.steps)

    def apply(self, grid: Grid, paints: Paints) -> Grid:
        for step in self.steps:
            grid = STEPS[step].apply(grid, paints)
        return grid


def origins(rule: Rule, rows: int, columns: int) -> Grid | None:
    """Of each cell of the output, the number of the input's cell that is there, counted in lines; None if that depends
    on what is in the cells."""
    if {Family.FALL, Family.EXTEND} & {*rule.families}:
        return None
    numbered: Grid = tuple(tuple(row * columns + column for column in range(columns)) for row in range(rows))
    for step in rule.steps:
        if STEPS[step].family not in (Family.RECOLOUR, Family.FILL):
            numbered = STEPS[step].apply(numbered, _PROBE_PAINTS)
    return numbered


# --- which rules are known -------------------------------------------------------------------------------------------


class Known(StrEnum):
    """What rules are for."""

    PRETRAINING = "pretraining"
    TRAIN = "train"
    TEST = "test"


@cache
def rules(which: Known) -> tuple[Rule, ...]:
    """Half of all, with all single steps, for pre-training, and a quarter each for a run's training and its test."""
    return _divided()[which]


@cache
def learnable_rules(which: Known) -> tuple[Rule, ...]:
    """Those of `rules` that are a run's to learn."""
    return tuple(rule for rule in rules(which) if {*rule.families} <= LEARNABLE)


@cache
def kinships() -> tuple[tuple[Rule, ...], ...]:
    """All rules but those that do what another does already; kin are the same but for a turn, a mirror or a size."""
    kin = _Kin()
    signatures: dict[tuple[Grid, ...], Rule] = {}
    by_size: dict[tuple[Grid, ...], Rule] = {}
    for rule in _all():
        outputs = [[rule.apply(grid, _PROBE_PAINTS) for grid in grids] for grids in _probes()]
        signature = tuple(grid for grids in outputs for grid in grids)
        if signature == _untouched() or signature in signatures:
            continue
        signatures[signature] = rule
        kin.add(rule)
        for size in outputs:
            kin.join(rule, by_size.setdefault(tuple(size), rule))
    for rule in signatures.values():
        for symmetry in _SYMMETRIES:
            seen = Rule(tuple(_conjugates()[symmetry, step] for step in rule.steps))
            same = tuple(seen.apply(grid, _PROBE_PAINTS) for grids in _probes() for grid in grids)
            kin.join(rule, signatures[same])
    return kin.groups()


def _all() -> Iterator[Rule]:
    """Single steps first: of rules that do the same, the first one counts."""
    yield from (Rule((name,)) for name in STEPS)
    for first, second in product(STEPS, STEPS):
        if STEPS[first].family in PLACING and first != second:
            yield Rule((first, second))


class _Kin:
    """Disjoint sets of rules that can be joined."""

    def __init__(self) -> None:
        self._head: dict[Rule, Rule] = {}

    def add(self, rule: Rule) -> None:
        self._head[rule] = rule

    def join(self, one: Rule, other: Rule) -> None:
        self._head[self._find(other)] = self._find(one)

    def groups(self) -> tuple[tuple[Rule, ...], ...]:
        members: defaultdict[Rule, list[Rule]] = defaultdict(list)
        for rule in self._head:
            members[self._find(rule)].append(rule)
        return tuple(map(tuple, members.values()))

    def _find(self, rule: Rule) -> Rule:
        while self._head[rule] != rule:
            rule = self._head[rule]
        return rule


@cache
def _divided() -> Mapping[Known, tuple[Rule, ...]]:
    """Kin stay together. Each goes where rules with such a second step are scarcest, then where rules are."""
    shares = {Known.PRETRAINING: 2, Known.TRAIN: 1, Known.TEST: 1}
    chosen: dict[Known, list[Rule]] = {which: [] for which in Known}
    pairs: list[tuple[Rule, ...]] = []
    for group in kinships():
        if any(len(rule.steps) == 1 for rule in group):
            chosen[Known.PRETRAINING] += group
        else:
            pairs.append(group)
    random.Random("rules").shuffle(pairs)
    for group in sorted(pairs, key=len, reverse=True):
        family = group[0].families[1]

        def wants(which: Known, family: Family = family) -> tuple[float, float]:
            alike = sum(rule.families[1:] == (family,) for rule in chosen[which])
            return alike / shares[which], len(chosen[which]) / shares[which]

        chosen[min(Known, key=wants)] += group
    return {which: tuple(found) for which, found in chosen.items()}


_PROBE_PAINTS = Paints(old=1, new=2, fill=3)
_PROBE_COLOURS = (EMPTY, EMPTY, EMPTY, 1, 1, 2, 3, 4)
_SYMMETRIES: Mapping[str, tuple[Callable[[Grid], Grid], Callable[[Grid], Grid]]] = {
    "turned": (rotate, lambda grid: turned(grid, 3)),
    "mirrored": (flip_columns, flip_columns),
}
"""With their inverses. All turns and mirrors are made of these two."""


@cache
def _probes() -> tuple[tuple[Grid, ...], ...]:
    """Grids to tell rules apart by, for each size. They have the colours that `_PROBE_PAINTS` speaks of."""
    rng = random.Random("probes")
    return tuple(
        tuple(tuple(tuple(rng.choice(_PROBE_COLOURS) for _ in range(side)) for _ in range(side)) for _ in range(4))
        for side in range(min(SIDES), LARGEST_SIDE + 1)
    )


def _untouched() -> tuple[Grid, ...]:
    return tuple(grid for grids in _probes() for grid in grids)


@cache
def _conjugates() -> Mapping[tuple[str, str], str]:
    """By symmetry and step, the step that does to changed grids what the step does to those as they are."""
    by_outputs = {tuple(step.apply(grid, _PROBE_PAINTS) for grid in _untouched()): step for step in STEPS.values()}
    found: dict[tuple[str, str], str] = {}
    for symmetry, (there, back) in _SYMMETRIES.items():
        for step in STEPS.values():
            outputs = tuple(there(step.apply(back(grid), _PROBE_PAINTS)) for grid in _untouched())
            found[symmetry, step.name] = by_outputs[outputs].name
    return found


# --- puzzles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    rule: Rule
    paints: Paints
    demonstrations: tuple[Shown[Grid], ...]
    tests: tuple[Shown[Grid], ...]

    @property
    def keeps_its_rule(self) -> bool:
        """Not so under some augmentations: what was a move to the left is one upwards when it is turned."""
        pairs = (*self.demonstrations, *self.tests)
        return all(self.rule.apply(pair.input, self.paints) == pair.output for pair in pairs)


def random_grid(rng: random.Random, side: int, *, coloured: float) -> Grid:
    """Of any colours; `coloured` is the chance of a cell to have one."""
    return tuple(
        tuple(rng.randrange(1, COLOURS) if rng.random() < coloured else EMPTY for _ in range(side)) for _ in range(side)
    )


def draw_puzzle(
    rule: Rule, rng: random.Random, *, demonstrations: int = 4, tests: int = 2, sides: Sequence[int] = SIDES
) -> Puzzle:
    """Inputs are squares of one size, all different, and each shows that all of the rule's steps are done."""
    side = rng.choice(sides)
    old, new, fill = rng.sample(range(1, COLOURS), 3)
    paints = Paints(old=old, new=new, fill=fill)
    coloured = min(_COLOURED.get(family, 0.85) for family in rule.families)
    shown: dict[Grid, Shown[Grid]] = {}
    for _ in range(MOST_DRAWS):
        grid = random_grid(rng, side, coloured=coloured)
        if Family.RECOLOUR in rule.families:
            grid = _with(grid, old, rng)
        if grid not in shown and _tells(rule, grid, paints):
            shown[grid] = Shown(grid, rule.apply(grid, paints))
        if len(shown) == demonstrations + tests:
            pairs = tuple(shown.values())
            return Puzzle(rule=rule, paints=paints, demonstrations=pairs[:demonstrations], tests=pairs[demonstrations:])
    raise AssertionError(f"no grids of {side} x {side} show {rule.name}")


def make_puzzles(
    which: Known, count: int, *, seed: int, demonstrations: int = 4, tests: int = 2, sides: Sequence[int] = SIDES
) -> list[Puzzle]:
    """Of learnable rules, in random order, none twice before all have had their turn."""
    rng = random.Random(f"puzzles-{which}-{seed}")
    chosen = learnable_rules(which)
    deck: list[Rule] = []
    made: list[Puzzle] = []
    while len(made) < count:
        deck = deck or rng.sample(chosen, len(chosen))
        made.append(draw_puzzle(deck.pop(), rng, demonstrations=demonstrations, tests=tests, sides=sides))
    return made


def as_context(puzzle: Puzzle, *, title: str) -> Context:
    """What the few-shot domain knows of it. The rule is in nothing but the title, which no model is shown."""
    shown = [(to_text(pair.input), to_text(pair.output)) for pair in puzzle.demonstrations]
    asked = [(to_text(pair.input), to_text(pair.output)) for pair in puzzle.tests]
    return Context(
        title=title,
        demonstrations=tuple(Demonstration(input=before, output=after) for before, after in shown),
        questions=tuple(Question(question=before, answer=after) for before, after in asked),
    )


def make_contexts(
    which: Known, count: int, *, seed: int, demonstrations: int = 4, tests: int = 2, sides: Sequence[int] = SIDES
) -> list[Context]:
    """`count` tasks of learnable rules for this purpose, each with a title of its own."""
    puzzles = make_puzzles(which, count, seed=seed, demonstrations=demonstrations, tests=tests, sides=sides)
    return [as_context(puzzle, title=f"{number}: {puzzle.rule.name}") for number, puzzle in enumerate(puzzles, start=1)]


_COLOURED: Mapping[Family, float] = {Family.FALL: 0.5, Family.EXTEND: 0.35, Family.FILL: 0.6}
"""How much of a grid is coloured for rules with such a step."""


def _with(grid: Grid, colour: int, rng: random.Random) -> Grid:
    """The same with some cells, at least one, of this colour."""
    rows, columns = len(grid), len(grid[0])
    painted = {*rng.sample(range(rows * columns), rng.randint(1, rows * columns // 3))}
    return tuple(
        tuple(colour if y * columns + x in painted else cell for x, cell in enumerate(row))
        for y, row in enumerate(grid)
    )


def _tells(rule: Rule, grid: Grid, paints: Paints) -> bool:
    """Whether the output is neither the input nor what a part of the rule makes of it."""
    output = rule.apply(grid, paints)
    parts = [Rule((step,)).apply(grid, paints) for step in rule.steps] if len(rule.steps) > 1 else []
    return output not in (grid, *parts)
