"""Rewards of trials and which self-edits they keep: ReST-EM's selection, SEAL's section 3.1 and its published files.

Means are exact: the values are added as fractions and rounded once (`statistics.mean`), so two self-edits that earned
the same tie exactly, and ties go to the one written first.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rookery_shared.types import Example

REFERENCE_DECIMALS = 4
"""The reference rounds each trial's accuracy to this many decimals before it takes means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One self-edit of a context and what its trials earned."""

    text: str
    scores: Sequence[float]
    """Score of each trial with the adapter: the mean grade over the questions."""
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


def best_of(candidates: Sequence[Candidate]) -> int:
    """Index of the highest reward; the first of ties."""
    return max(range(len(candidates)), key=lambda i: (candidates[i].reward, -i))


def keep_of(candidates: Sequence[Candidate], *, keep_without_gain: bool) -> int | None:
    """Index of the self-edit that a context contributes to the teacher's training: the best one.

    None if there is no candidate, if the best one is blank (no other takes its place), or if it does not beat the
    baseline and `keep_without_gain`, which is the reference's rule, is off.
    """
    if not candidates:
        return None
    best = best_of(candidates)
    chosen = candidates[best]
    if not chosen.text.strip() or (chosen.gain <= 0 and not keep_without_gain):
        return None
    return best


def random_of(texts: Sequence[str], rng: random.Random) -> int | None:
    """Index of any self-edit that is not blank, for the control line. None if there is none."""
    written = [i for i, text in enumerate(texts) if text.strip()]
    return rng.choice(written) if written else None


def sft_example(*, prompt: str, text: str) -> Example:
    """What a kept self-edit teaches the teacher: itself, without white space around it, under its prompt."""
    return Example(prompt=prompt, completion=text.strip(), end=True)
