"""Rewards of trials and which self-edits they keep: ReST-EM's selection, SEAL's section 3.1 and its published files.

Means are exact: the values are added as fractions and rounded once (`statistics.mean`), so two self-edits that earned
the same tie exactly, and ties go to the one written first.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rookery_coordinator.types import RewardShape
from rookery_shared.types import Example

REFERENCE_DECIMALS = 4
"""The reference rounds each trial's accuracy to this many decimals before it takes means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one trial measured: all that its reward is made of."""

    score_before: float
    """Mean grade over the questions, without the adapter."""
    score_after: float
    """With it."""
    weight_change: float
    """Frobenius norm of the change that the adapter is."""
    tokens: int
    """That it was trained on, over all epochs."""
    forgetting: float
    """What the retention texts have lost in mean log-likelihood, in nats per token; below 0 it is a gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One self-edit of a context and what its trials earned."""

    text: str
    scores: Sequence[float]
    """Score of each trial with the adapter, shaped: the mean grade over the questions, less penalties."""
    baseline: float
    """Score of the base model on the same questions."""

    @property
    def reward(self) -> float:
        return statistics.mean(self.scores)

    @property
    def gain(self) -> float:
        return self.reward - self.baseline


def trial_score(grades: Sequence[float], *, decimals: int | None = None) -> float:
    """The mean grade of a trial's questions."""
    score = statistics.mean(grades)
    return score if decimals is None else round(score, decimals)


def shaped(trial: Measured, shape: RewardShape) -> float:
    """The score that a trial counts with: its baseline and its gain, scaled and clipped, less what it has cost.

    Without a shape it is the score itself, to the last bit: ties stay ties. Better memory is no merit.
    """
    if shape == RewardShape():
        return trial.score_after
    gain = shape.scale * (trial.score_after - trial.score_before)
    if shape.clip:
        gain = min(max(gain, -shape.clip), shape.clip)
    costs = (
        shape.weight_change * trial.weight_change
        + shape.forgetting * max(0.0, trial.forgetting)
        + shape.compute * trial.tokens / 1e6
    )
    return trial.score_before + gain - costs


def best_of(candidates: Sequence[Candidate]) -> int:
    """Index of the highest reward; the first of ties."""
    return max(range(len(candidates)), key=lambda i: (candidates[i].reward, -i))


def keep_of(candidates: Sequence[Candidate], *, least_gain: float = 0.0) -> int | None:
    """Index of the self-edit that a context contributes to the teacher's training: the best one.

    None if there is no candidate, if the best one is blank (no other takes its place), or if it does not beat the
    baseline by more than `least_gain`; -inf is the reference's rule.
    """
    if not candidates:
        return None
    best = best_of(candidates)
    chosen = candidates[best]
    if not chosen.text.strip() or chosen.gain <= least_gain:
        return None
    return best


def random_of(texts: Sequence[str], rng: random.Random) -> int | None:
    """Index of any self-edit that is not blank, for the control line. None if there is none."""
    written = [i for i, text in enumerate(texts) if text.strip()]
    return rng.choice(written) if written else None


def sft_example(*, prompt: str, text: str) -> Example:
    """What a kept self-edit teaches the teacher: itself, without white space around it, under its prompt."""
    return Example(prompt=prompt, completion=text.strip(), end=True)
