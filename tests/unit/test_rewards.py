"""Rewards and ReST-EM's selection."""

from __future__ import annotations

import random

from rookery_coordinator.rewards import Candidate, best_of, keep_of, random_of, sft_example, trial_score
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
    assert keep_of(worse, keep_without_gain=False) is None
    assert keep_of(worse, keep_without_gain=True) == 1
    assert keep_of([candidate(0.6, baseline=0.5)], keep_without_gain=False) == 0


def test_a_blank_winner_is_dropped_without_a_substitute() -> None:
    assert keep_of([candidate(0.9, text=" \n"), candidate(0.5)], keep_without_gain=True) is None
    assert keep_of([], keep_without_gain=True) is None


def test_the_control_takes_any_that_is_written() -> None:
    texts = ["", "a", " ", "b"]
    assert {random_of(texts, random.Random(seed)) for seed in range(50)} == {1, 3}
    assert random_of(["", " "], random.Random(0)) is None


def test_a_trial_scores_the_mean_of_its_grades() -> None:
    assert trial_score([1.0, 0.0, 0.0]) == 1 / 3
    assert trial_score([1.0, 0.0, 0.0], decimals=4) == 0.3333


def test_the_teacher_learns_a_self_edit_without_the_white_space_around_it() -> None:
    assert sft_example(prompt="a\n", text=" ü \n") == Example(prompt="a\n", completion="ü", end=True)
