"""Grids: their text, augmentations and their inverses, configurations, votes."""

from __future__ import annotations

import json
import random
import string

import pytest

from rookery.grids import Grid, NotAGrid, from_text, make_grid, to_text
from rookery_shared.grids.augmentations import GROUPS, QUERIES, draw_colours
from rookery_shared.grids.configuration import (
    LEARNING_RATES,
    MOST_EPOCHS,
    BadConfiguration,
    Configuration,
    Strategy,
    read_configuration,
    write_configuration,
)
from rookery_shared.grids.voting import by_columns, by_rows, elect

ONE: Grid = ((1, 2, 3), (4, 5, 6))
GOOD = Configuration(groups=("use_basic_augmentations",), strategy=Strategy.OUTPUT, learning_rate=1e-4, epochs=2)


def random_grid(rng: random.Random) -> Grid:
    rows, columns = rng.randint(1, 8), rng.randint(1, 8)
    return tuple(tuple(rng.randrange(10) for _ in range(columns)) for _ in range(rows))


def test_a_grid_is_read_from_its_text() -> None:
    assert to_text(ONE) == "1 2 3\n4 5 6"
    assert from_text(" 1 2 3 \n4 5 6\n\n") == ONE


@pytest.mark.parametrize("text", ["", "1 2\n3", "1 10", "a", "1, 2", "-1", "1 ２", "1\n\n2"])
def test_a_text_that_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(NotAGrid):
        from_text(text)


@pytest.mark.parametrize(
    "rows", [None, [], [[]], "12", [["1"]], [[True]], [[10]], [[1], [1, 2]], [[0] * 31], [[0]] * 31]
)
def test_rows_that_are_no_grid_are_refused(rows: object) -> None:
    with pytest.raises(NotAGrid):
        make_grid(rows)


def test_the_groups_are_as_large_as_the_reference_s() -> None:
    sizes = {name.split("_")[1]: len(group) for name, group in GROUPS.items()}
    assert sizes == {"basic": 11, "size": 3, "chain": 6, "repeat": 3}
    assert len(QUERIES) == 5
    names = [augmentation.name for group in GROUPS.values() for augmentation in group]
    assert len({*names}) == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotate-90", ((3, 6), (2, 5), (1, 4))),
        ("rotate-180", ((6, 5, 4), (3, 2, 1))),
        ("rotate-270", ((4, 1), (5, 2), (6, 3))),
        ("flip-rows", ((4, 5, 6), (1, 2, 3))),
        ("flip-columns", ((3, 2, 1), (6, 5, 4))),
        ("transpose", ((1, 4), (2, 5), (3, 6))),
        ("reflect-below", ((1, 2, 3), (4, 5, 6), (4, 5, 6), (1, 2, 3))),
        ("reflect-above", ((4, 5, 6), (1, 2, 3), (1, 2, 3), (4, 5, 6))),
        ("reflect-right", ((1, 2, 3, 3, 2, 1), (4, 5, 6, 6, 5, 4))),
        ("reflect-left", ((3, 2, 1, 1, 2, 3), (6, 5, 4, 4, 5, 6))),
        ("height", ((1, 2, 3), (1, 2, 3), (4, 5, 6), (4, 5, 6))),
        ("width", ((1, 1, 2, 2, 3, 3), (4, 4, 5, 5, 6, 6))),
        ("repeat-beside", ((1, 2, 3, 1, 2, 3), (4, 5, 6, 4, 5, 6))),
        ("transpose+resolution", ((1, 1, 4, 4), (1, 1, 4, 4), (2, 2, 5, 5), (2, 2, 5, 5), (3, 3, 6, 6), (3, 3, 6, 6))),
    ],
)
def test_what_an_augmentation_does(name: str, expected: Grid) -> None:
    [augmentation] = [a for group in GROUPS.values() for a in group if a.name == name]
    assert augmentation.draw(random.Random(0)).apply(ONE) == expected


def test_every_augmentation_is_undone_and_drawn_alike_by_a_seed() -> None:
    rng = random.Random(0)
    for augmentation in (a for group in GROUPS.values() for a in group):
        for _ in range(50):
            grid, seed = random_grid(rng), rng.random()
            drawn = augmentation.draw(random.Random(seed))
            assert drawn.undo(drawn.apply(grid)) == grid
            assert augmentation.draw(random.Random(seed)).apply(grid) == drawn.apply(grid)


def test_colours_are_permuted_and_brought_back() -> None:
    colours: Grid = (tuple(range(10)),)
    drawn = draw_colours(random.Random(1))
    assert sorted(drawn.apply(colours)[0]) == [*range(10)]
    assert drawn.apply(colours) != colours
    assert drawn.undo(drawn.apply(colours)) == colours


def test_a_configuration_is_read_as_it_was_written() -> None:
    assert read_configuration(write_configuration(GOOD)) == GOOD
    assert read_configuration(f"\n {write_configuration(GOOD)} \n") == GOOD


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("training", "num_train_epochs"), 0),
        (("training", "num_train_epochs"), MOST_EPOCHS + 1),
        (("training", "num_train_epochs"), 2.0),
        (("training", "num_train_epochs"), True),
        (("training", "learning_rate"), 0),
        (("training", "learning_rate"), 1),
        (("training", "learning_rate"), "1e-4"),
        (("training", "learning_rate"), None),
        (("training", "strategy"), "train"),
        (("training", "strategy"), ["train_using_all_tokens"]),
        (("data_generation", "use_basic_augmentations"), 1),
        (("data_generation", "use_concat_augmentations"), True),
        (("training",), []),
        (("more",), {}),
    ],
)
def test_a_configuration_outside_the_schema_is_refused(path: tuple[str, ...], value: object) -> None:
    content = json.loads(write_configuration(GOOD))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BadConfiguration):
        read_configuration(json.dumps(content))


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "{", "1" * 5000, "[" * 100_000, '{"a":1,"a":2}', "Here it is: {}", "\ud800"]
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(BadConfiguration):
        read_configuration(text)


def test_no_random_text_is_accepted_outside_the_schema() -> None:
    """100,000 texts: noise, and good ones with characters changed, cut and put in."""
    rng, good = random.Random(0), write_configuration(GOOD)
    accepted = 0
    for _ in range(100_000):
        text = _noise(rng) if rng.random() < 0.2 else _mutated(rng, good)
        try:
            read = read_configuration(text)
        except BadConfiguration:
            continue
        accepted += 1
        assert {*read.groups} <= {*GROUPS}
        assert LEARNING_RATES[0] <= read.learning_rate <= LEARNING_RATES[1]
        assert 1 <= read.epochs <= MOST_EPOCHS
        assert read_configuration(write_configuration(read)) == read
    assert 100 < accepted < 50_000, "some mutations are harmless"


PIECES = ["", '"', "e", "0", "true", "null", "1e999", "-", "NaN", "{", "]"]


def _noise(rng: random.Random) -> str:
    return "".join(rng.choices(string.printable + '{}[]":,\\', k=rng.randint(0, 80)))


def _mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text))
        piece = rng.choice(
            ["", rng.choice(string.printable), '"', "e", "0", "true", "null", "1e999", "-", "NaN", "{", "]"]
        )
        text = text[:place] + piece + text[place + rng.randint(0, 2) :]
    return text


A: Grid = ((1, 1), (1, 1))
B: Grid = ((2, 2), (2, 2))


def test_the_majority_is_elected_and_the_next_is_the_second_attempt() -> None:
    assert elect({"as it is": [A, B, A], "flip": [A], "turn": [B]}) == [A, B]
    assert elect({"as it is": [A]}) == [A]
    assert elect({}) == []
    assert elect({"as it is": []}) == []


def test_rows_and_columns_are_elected_one_by_one() -> None:
    grids: list[Grid] = [((1, 1), (2, 3)), ((1, 4), (2, 2)), ((5, 1), (2, 2)), ((1, 1), (7, 2)), ((9,),)]
    assert by_rows(grids) == ((1, 1), (2, 2))
    assert by_columns([((1, 3), (1, 4)), ((1, 0), (1, 0)), ((2, 0), (2, 0))]) == ((1, 0), (1, 0))
    assert elect({"as it is": grids})[0] == ((1, 1), (2, 2)), "though nobody predicted it whole"
