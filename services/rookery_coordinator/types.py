"""The coordinator's nouns: states, purposes, and the specs of runs and adaptations as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from rookery_shared.domains import DEFAULT_DOMAIN
from rookery_shared.types import ALL_LINEAR, LoraRecipe, Sampling


class State(StrEnum):
    """Of a run, an adaptation or a round."""

    WAITING = "waiting"
    """A round whose predecessor has not ended."""
    RUNNING = "running"
    PAUSED = "paused"
    """A run or an adaptation none of whose jobs starts. Its rounds stay as they are."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class JobState(StrEnum):
    QUEUED = "queued"
    """Waits for a worker; a message says so, or will."""
    HELD = "held"
    """Waits until its run or adaptation is resumed; nobody can claim it."""
    RUNNING = "running"
    """A worker holds its lease."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_JOB_STATES = (JobState.QUEUED, JobState.HELD, JobState.RUNNING)


class JobKind(StrEnum):
    GENERATE = "generate"
    """The teacher writes self-edits for some contexts."""
    TRAIN = "train"
    """The student trains an adapter for each of some trials."""
    EVALUATE = "evaluate"
    """The evaluator scores those adapters."""
    IMPROVE = "improve"
    """The teacher's trainer makes the next policy."""
    ACTIVATE = "activate"
    """A teacher loads its active policy."""


class Purpose(StrEnum):
    """What a round is for."""

    BASELINE = "baseline"
    """Measures the student on what needs no teacher: the passage alone, or a baseline of the domain's."""
    TRAIN = "train"
    """Trains the teacher: generate, train, evaluate, improve."""
    TEST = "test"
    """Measures a policy: generate, train, evaluate."""
    CONTROL = "control"
    """Trains the control line of policies: as if rewards were random."""
    ADAPT = "adapt"
    """Serves one adaptation: generate, train, evaluate."""


class Split(StrEnum):
    """Which contexts of a run. An adaptation's one context is in TRAIN."""

    TRAIN = "train"
    TEST = "test"


class TrialState(StrEnum):
    PLANNED = "planned"
    TRAINED = "trained"
    SCORED = "scored"
    REFUSED = "refused"
    """Its self-edit cannot be used: it scores 0, as the worst do."""
    FAILED = "failed"
    """Its adapter could not be trained; no score counts it."""


ENDED_TRIAL_STATES = (TrialState.SCORED, TrialState.REFUSED, TrialState.FAILED)


class Role(StrEnum):
    TEACHER = "teacher"
    STUDENT = "student"


class Reward(StrEnum):
    """The grader that pays. All graders' grades are stored, whichever pays; a judge is asked only where it counts."""

    EXACT = "exact"
    F1 = "f1"
    CONTAINS = "contains"
    LOGLIK = "loglik"
    MATCH = "match"
    JUDGE = "judge"
    CELLS = "cells"
    LIKELIHOOD = "likelihood"


class SeedAllocation(StrEnum):
    """How a context's trials are spread over its self-edits."""

    FIXED = "fixed"
    """As many for each."""
    RACE = "race"
    """One for each, the rest for those that could still be the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardShape:
    """What a trial's gain is made into before it decides anything. The default leaves it as it is."""

    scale: float = 1.0
    clip: float = 0.0
    """Largest gain or loss that counts, after scaling; 0 does not clip."""
    weight_change: float = 0.0
    """Penalty for each unit of the weight change's Frobenius norm."""
    forgetting: float = 0.0
    """Penalty for each nat per token that the retention texts lose in log-likelihood."""
    compute: float = 0.0
    """Penalty for each million tokens of training."""


TEACHER_RECIPE = LoraRecipe(rank=64, alpha=128, targets=(ALL_LINEAR,), epochs=2, learning_rate=3e-4, batch_size=10)
"""SEAL's settings for its SFT of the teacher."""
GRPO_RECIPE = replace(TEACHER_RECIPE, learning_rate=1e-4, batch_size=50)
"""The same adapter for GRPO, in smaller steps: a round of SEAL's size has 250 self-edits, of which a step sees 50, and
each is seen twice, so that its clipping is of use. Not tuned on a large model."""


class Keep(StrEnum):
    """Which self-edits of a context ReST-EM imitates."""

    BEST = "best"
    """The best, if it gains."""
    GAINING = "gaining"
    """All that gain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestEm:
    """Supervised fine-tuning on the self-edits that are kept."""

    method: Literal["rest_em"] = "rest_em"
    keep: Keep | None = None
    """None is as the domain does."""
    least_gain: float = 0.0
    """What a self-edit must gain, and more, to be imitated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grpo:
    """A policy gradient over all self-edits of each context."""

    method: Literal["grpo"] = "grpo"
    kl_coefficient: float = 0.04
    """Weight of the divergence from the base, as in the GRPO paper."""
    clip_range: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run does. Defaults are SEAL's where it has them."""

    domain: str = DEFAULT_DOMAIN
    style: str = "implications"
    rounds: int = 2
    self_edits: int = 5
    seeds: int = 1
    test_self_edits: int = 2
    reward: Reward = Reward.LOGLIK
    keep_without_gain: bool = False
    control: bool = False
    optimiser: RestEm | Grpo = RestEm()
    sampling: Sampling = Sampling()
    student_recipe: LoraRecipe = LoraRecipe()
    teacher_recipe: LoraRecipe = TEACHER_RECIPE
    seed: int = 0
    seed_allocation: SeedAllocation = SeedAllocation.FIXED
    race_confidence: float = 0.8
    """How sure it must be that a self-edit is behind before it gets no more trials."""
    reward_shape: RewardShape = RewardShape()
    retention_texts: tuple[str, ...] = ()
    """What adapters should not forget."""
    redraws: int = 2
    """How often a self-edit that is blank, or that there is already, is drawn again; but not of test contexts."""
    baselines: tuple[str, ...] = ()
    """Names in the domain's `baselines`."""
    test_grader: Reward | None = None
    """What trials on test contexts are scored by; None, as in plans of earlier releases, is as `reward`."""
    test_every: int = 1
    """Policies are measured after every so many rounds, and after the last."""

    def grader(self, split: Split) -> Reward:
        """What trials on contexts of this split are scored by."""
        return self.test_grader or self.reward if split is Split.TEST else self.reward


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationPlan:
    """What an adaptation does."""

    domain: str = DEFAULT_DOMAIN
    style: str = "implications"
    self_edits: int = 5
    seeds: int = 2
    reward: Reward = Reward.LOGLIK
    sampling: Sampling = Sampling()
    student_recipe: LoraRecipe = LoraRecipe()
    seed: int = 0
    redraws: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a profile admits."""

    max_passage_characters: int = 20_000
    max_new_tokens: int = 1_024
    max_lora_rank: int = 64
    trials_per_job: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    reason: str
    message: str
