"""What a round's next policy is trained on: an optimiser's choice among the self-edits of each context.

ReST-EM imitates the best self-edit of a context if it gains (SEAL's section 3.1). GRPO follows a policy gradient over
all of them (DeepSeekMath, arXiv 2402.03300). Decides from rewards alone; the rounds fetch and store.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rookery_coordinator import rewards
from rookery_coordinator.rewards import Candidate
from rookery_coordinator.types import Grpo, Keep, RunPlan
from rookery_shared.domains import find_domain
from rookery_shared.types import Example, PolicyGradient

SPREAD_FLOOR = 1e-4
"""Added to the standard deviation of a group's rewards, as TRL does: differences far below it count for little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One self-edit of a context."""

    prompt: str
    text: str
    truncated: bool
    """Cut at the token limit: the policy did not end it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A self-edit that the next policy is trained on."""

    index: int
    """Among those of its context."""
    example: Example
    advantage: float = 1.0
    """How much more of it, or less if negative."""


class PolicyOptimiser(Protocol):
    """Turns the self-edits of one context into lessons."""

    def lessons(self, samples: Sequence[Sample], earned: Sequence[Candidate]) -> list[Lesson]:
        """From what each of the samples earned; any number of them, none included."""

    def control_lessons(self, samples: Sequence[Sample], rng: random.Random) -> list[Lesson]:
        """As if rewards were random."""

    def gradient(self, lessons: Sequence[Lesson]) -> PolicyGradient | None:
        """What the examples of all contexts' lessons are trained for; None learns them by their likelihood."""


def optimiser_of(plan: RunPlan) -> PolicyOptimiser:
    """The one that the run has chosen."""
    if isinstance(plan.optimiser, Grpo):
        return GroupRelative(plan.optimiser)
    usual = Keep.GAINING if find_domain(plan.domain).keeps_all else Keep.BEST
    if (plan.optimiser.keep or usual) is Keep.GAINING:
        return AllThatGain(least_gain=plan.optimiser.least_gain)
    return BestOfGroup(least_gain=-math.inf if plan.keep_without_gain else plan.optimiser.least_gain)


class BestOfGroup:
    """ReST-EM: supervised fine-tuning on the best self-edit of each context."""

    def __init__(self, *, least_gain: float) -> None:
        self._least_gain = least_gain

    def lessons(self, samples: Sequence[Sample], earned: Sequence[Candidate]) -> list[Lesson]:
        return self._only(samples, rewards.keep_of(earned, least_gain=self._least_gain))

    def control_lessons(self, samples: Sequence[Sample], rng: random.Random) -> list[Lesson]:
        return self._only(samples, rewards.random_of([sample.text for sample in samples], rng))

    def gradient(self, lessons: Sequence[Lesson]) -> PolicyGradient | None:
        return None

    def _only(self, samples: Sequence[Sample], chosen: int | None) -> list[Lesson]:
        if chosen is None:
            return []
        sample = samples[chosen]
        return [Lesson(index=chosen, example=rewards.sft_example(prompt=sample.prompt, text=sample.text))]


class AllThatGain:
    """ReST-EM: supervised fine-tuning on every self-edit that gains, as in SEAL's section 4.2."""

    def __init__(self, *, least_gain: float) -> None:
        self._least_gain = least_gain

    def lessons(self, samples: Sequence[Sample], earned: Sequence[Candidate]) -> list[Lesson]:
        gaining = [index for index, candidate in enumerate(earned) if candidate.gain > self._least_gain]
        return self._these(samples, gaining)

    def control_lessons(self, samples: Sequence[Sample], rng: random.Random) -> list[Lesson]:
        return self._these(samples, [index for index in range(len(samples)) if rng.random() < 1 / 2])

    def gradient(self, lessons: Sequence[Lesson]) -> PolicyGradient | None:
        return None

    def _these(self, samples: Sequence[Sample], chosen: Sequence[int]) -> list[Lesson]:
        return [
            Lesson(index=i, example=rewards.sft_example(prompt=samples[i].prompt, text=samples[i].text))
            for i in chosen
            if samples[i].text.strip()
        ]


class GroupRelative:
    """GRPO: every self-edit, by how far its reward is from the mean of its context's.

    A context whose self-edits all earned the same teaches nothing. A blank self-edit is one like any other: a policy
    that ended at once. What failed to train earned nothing that could be compared, and is not in the group.
    """

    def __init__(self, settings: Grpo) -> None:
        self._settings = settings

    def lessons(self, samples: Sequence[Sample], earned: Sequence[Candidate]) -> list[Lesson]:
        return self._relative(samples, [candidate.reward for candidate in earned])

    def control_lessons(self, samples: Sequence[Sample], rng: random.Random) -> list[Lesson]:
        return self._relative(samples, [rng.gauss() for _ in samples])

    def gradient(self, lessons: Sequence[Lesson]) -> PolicyGradient | None:
        return PolicyGradient(
            advantages=tuple(lesson.advantage for lesson in lessons),
            kl_coefficient=self._settings.kl_coefficient,
            clip_range=self._settings.clip_range,
        )

    def _relative(self, samples: Sequence[Sample], earned: Sequence[float]) -> list[Lesson]:
        relative = advantages(earned)
        if not any(relative):
            return []
        return [
            Lesson(index=index, example=_as_drawn(sample), advantage=advantage)
            for index, (sample, advantage) in enumerate(zip(samples, relative, strict=True))
        ]


def _as_drawn(sample: Sample) -> Example:
    """With the white space around it; and with an end only if the policy wrote one."""
    return Example(prompt=sample.prompt, completion=sample.text, end=not sample.truncated)


def advantages(earned: Sequence[float]) -> list[float]:
    """Of each reward in its group: less the mean, over the standard deviation. All zero in a group without spread."""
    if not earned:
        return []
    mean, spread = statistics.mean(earned), statistics.pstdev(earned)
    return [(reward - mean) / (spread + SPREAD_FLOOR) for reward in earned]
