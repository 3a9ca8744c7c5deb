"""Means, standard errors and paired comparisons."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy.stats import ttest_rel

from rookery_coordinator.report import compare, comparisons, measure, measurements


def test_standard_error_is_over_contexts() -> None:
    measured = measure("x", [0.0, 1.0, 1.0, 0.0])
    assert (measured.mean, measured.n) == (0.5, 4)
    assert measured.standard_error == pytest.approx(statistics.stdev([0, 1, 1, 0]) / 2)


def test_one_context_has_no_known_error() -> None:
    assert math.isnan(measure("x", [0.3]).standard_error)


def test_comparisons_are_paired_by_context() -> None:
    rng = random.Random(0)
    levels = {f"c{i}": rng.random() for i in range(30)}
    better = {context: level + 0.1 + rng.gauss(0, 0.02) for context, level in levels.items()}
    compared = compare("a", "b", levels, better)
    assert compared is not None
    assert compared.mean_difference == pytest.approx(0.1, abs=0.02)
    assert compared.p_value < 1e-6, "contexts differ far more than the gain; only pairing shows it"
    assert compared.n == 30


@pytest.mark.parametrize("n", [2, 3, 10, 60])
def test_the_p_value_is_that_of_a_paired_t_test(n: int) -> None:
    rng = random.Random(n)
    one, other = ({f"c{i}": rng.random() for i in range(n)} for _ in range(2))
    compared = compare("a", "b", one, other)
    assert compared is not None
    assert compared.p_value == pytest.approx(ttest_rel([*other.values()], [*one.values()]).pvalue, rel=1e-9)


def test_contexts_that_only_one_has_are_left_out() -> None:
    compared = compare("a", "b", {"x": 0.0, "y": 0.5}, {"y": 1.0, "z": 1.0})
    assert compared is not None
    assert (compared.n, compared.mean_difference) == (1, 0.5)
    assert math.isnan(compared.p_value)
    assert compare("a", "b", {"x": 0.0}, {"y": 0.0}) is None


def test_the_table_keeps_its_order_and_compares_policies_with_the_first() -> None:
    rows = {
        "base": {"x": 0.0, "y": 0.1},
        "passage only": {"x": 0.1, "y": 0.1},
        "self-edits before RL": {"x": 0.2, "y": 0.3},
        "after round 1": {"x": 0.4, "y": 0.3},
        "control": {"x": 0.2, "y": 0.2},
    }
    assert [m.name for m in measurements(rows)] == list(rows)
    assert [(c.first, c.second) for c in comparisons(rows)] == [
        ("base", "passage only"),
        ("passage only", "self-edits before RL"),
        ("self-edits before RL", "after round 1"),
        ("self-edits before RL", "control"),
    ]
