"""Rewards and ReST-EM's selection."""

from __future__ import annotations

import math
import random

import pytest

from rookery_coordinator.rewards import (
    Candidate,
    Measured,
    best_of,
    keep_of,
    random_of,
    sft_example,
    shaped,
    trial_score,
)
from rookery_coordinator.types import RewardShape
from rookery_shared.types import Example


def candidate(*scores: float, text: str = "x", baseline: float = 0.0) -> Candidate:
    return Candidate(text=text, scores=scores, baseline=baseline)


def test_the_highest_mean_wins_and_the_first_of_ties() -> None:
    assert best_of([candidate(0.2), candidate(0.1, 0.5), candidate(0.3, 0.3)]) == 1
    assert best_of([candidate(0.1), candidate(0.4, 0.2), candidate(0.2, 0.4)]) == 1


def test_means_are_exact_so_equal_counts_tie() -> None:
    thirds, sum_in_another_order = candidate(0.1, 0.2, 0.3), candidate(0.3, 0.2, 0.1)
    assert (0.1 + 0.2 + 0.3) / 3 != (0.3 + 0.2 + 0.1) / 3, "or this test shows nothing"
    assert best_of([thirds, sum_in_another_order]) == 0
    assert thirds.reward == sum_in_another_order.reward


def test_only_a_positive_gain_is_kept_unless_the_reference_is_asked_for() -> None:
    worse = [candidate(0.2, baseline=0.5), candidate(0.5, baseline=0.5)]
    assert keep_of(worse) is None
    assert keep_of(worse, least_gain=-math.inf) == 1
    assert keep_of([candidate(0.6, baseline=0.5)]) == 0


def test_a_blank_winner_is_dropped_without_a_substitute() -> None:
    assert keep_of([candidate(0.9, text=" \n"), candidate(0.5)], least_gain=-math.inf) is None
    assert keep_of([], least_gain=-math.inf) is None


def test_the_control_takes_any_that_is_written() -> None:
    texts = ["", "a", " ", "b"]
    assert {random_of(texts, random.Random(seed)) for seed in range(50)} == {1, 3}
    assert random_of(["", " "], random.Random(0)) is None


def test_a_trial_scores_the_mean_of_its_grades() -> None:
    assert trial_score([1.0, 0.0, 0.0]) == 1 / 3
    assert trial_score([1.0, 0.0, 0.0], decimals=4) == 0.3333


def test_the_teacher_learns_a_self_edit_without_the_white_space_around_it() -> None:
    assert sft_example(prompt="a\n", text=" ü \n") == Example(prompt="a\n", completion="ü", end=True)


MEASURED = Measured(score_before=0.2, score_after=0.8, weight_change=2.0, tokens=500_000, forgetting=0.25)


def test_a_reward_without_a_shape_is_the_score_to_the_last_bit() -> None:
    assert shaped(MEASURED, RewardShape()) == MEASURED.score_after


@pytest.mark.parametrize(
    ("shape", "gain"),
    [
        (RewardShape(scale=2.0), 1.2),
        (RewardShape(scale=2.0, clip=0.5), 0.5),
        (RewardShape(weight_change=0.1), 0.6 - 0.2),
        (RewardShape(forgetting=1.0), 0.6 - 0.25),
        (RewardShape(compute=0.2), 0.6 - 0.1),
        (RewardShape(clip=0.1, weight_change=1.0), 0.1 - 2.0),
    ],
)
def test_a_shape_scales_and_clips_the_gain_and_takes_off_what_it_cost(shape: RewardShape, gain: float) -> None:
    assert shaped(MEASURED, shape) == pytest.approx(MEASURED.score_before + gain)


def test_a_loss_is_clipped_as_a_gain_is_and_remembering_better_is_no_merit() -> None:
    worse = Measured(score_before=0.8, score_after=0.2, weight_change=0.0, tokens=0, forgetting=-1.0)
    assert shaped(worse, RewardShape(clip=0.5, forgetting=1.0)) == pytest.approx(0.3)
