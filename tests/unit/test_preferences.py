"""What a teacher's configurations come to when they are counted."""

from __future__ import annotations

import math
import random

import pytest

from rookery.cli.preferences import GROUPS, preferences
from rookery_shared.grids import augmentations
from rookery_shared.grids.configuration import Configuration, Strategy, draw_configuration, write_configuration


def written(rate: float, epochs: int, *groups: str, strategy: Strategy = Strategy.OUTPUT) -> str:
    return write_configuration(Configuration(groups=groups, strategy=strategy, learning_rate=rate, epochs=epochs))


def test_groups_are_those_of_configurations() -> None:
    assert [f"use_{group}_augmentations" for group in GROUPS] == [*augmentations.GROUPS]


def test_shares_and_quartiles() -> None:
    chosen = preferences(
        [
            written(1e-3, 1, "use_basic_augmentations", "use_size_augmentations"),
            written(2e-3, 2, "use_basic_augmentations"),
            written(3e-3, 3),
            written(4e-3, 4, "use_basic_augmentations", strategy=Strategy.ALL),
            written(5e-3, 5),
            "no configuration",
            "[]",
            "{}",
        ]
    )
    assert chosen.configurations == 5
    assert chosen.groups == {"basic": 0.6, "size": 0.2, "chain": 0.0, "repeat": 0.0}
    assert chosen.outputs_only == 0.8
    assert chosen.learning_rates == pytest.approx((2e-3, 3e-3, 4e-3))
    assert chosen.epochs == (2, 3, 4)


def test_any_configuration_is_counted() -> None:
    rng = random.Random(0)
    assert preferences(write_configuration(draw_configuration(rng)) for _ in range(50)).configurations == 50


def test_of_one_and_of_none() -> None:
    assert preferences([written(1e-3, 7)]).epochs == (7, 7, 7)
    nothing = preferences([])
    assert nothing.configurations == 0
    assert all(map(math.isnan, (*nothing.groups.values(), nothing.outputs_only, *nothing.epochs)))
