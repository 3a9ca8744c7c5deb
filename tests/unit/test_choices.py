"""What a teacher's configurations come to when they are counted."""

from __future__ import annotations

import random

import pytest

from rookery.cli.choices import choices, choices_table
from rookery_shared.grids.configuration import Configuration, Strategy, draw_configuration, write_configuration


def written(rate: float, epochs: int, *groups: str, strategy: Strategy = Strategy.OUTPUT) -> str:
    return write_configuration(Configuration(groups=groups, strategy=strategy, learning_rate=rate, epochs=epochs))


def test_shares_and_quartiles() -> None:
    chosen = choices(
        [
            written(1e-3, 1, "use_basic_augmentations", "use_size_augmentations"),
            written(2e-3, 2, "use_basic_augmentations"),
            written(3e-3, 3),
            written(4e-3, 4, "use_basic_augmentations", strategy=Strategy.ALL),
            written(5e-3, 5),
            "no configuration",
            written(1e-3, 1).replace("false", '"false"'),
        ]
    )
    assert chosen is not None
    assert chosen.configurations == 5
    assert chosen.groups == {"basic": 0.6, "size": 0.2, "chain": 0.0, "repeat": 0.0}
    assert chosen.outputs_only == 0.8
    assert chosen.learning_rate == pytest.approx((2e-3, 3e-3, 4e-3))
    assert chosen.epochs == (2, 3, 4)


def test_any_configuration_is_counted() -> None:
    rng = random.Random(0)
    chosen = choices(write_configuration(draw_configuration(rng)) for _ in range(50))
    assert chosen is not None
    assert chosen.configurations == 50


def test_of_one_and_of_none() -> None:
    one = choices([written(1e-3, 7)])
    assert one is not None
    assert one.epochs == (7, 7, 7)
    assert choices([""]) is None
    table = choices_table({"before RL": None, "after RL": one})
    assert (len(table.columns), len(table.rows)) == (3, 7)
    assert choices_table({"before RL": None}).rows == []
