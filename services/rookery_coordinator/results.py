"""What workers report of their jobs, as the rounds take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rookery_shared.types import Question, TrainingRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSelfEdit:
    prompt: str
    text: str
    seed: int
    truncated: bool
    prompt_tokens: int
    completion_tokens: int
    fault: str
    """Why it cannot be used; empty if it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a teacher wrote for one context."""

    self_edits: Sequence[WrittenSelfEdit]
    questions: Sequence[Question]
    redrawn: int
    """Self-edits that were drawn more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAdapter:
    name: str
    size_bytes: int
    training: TrainingRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One question without the adapter and with it, graded."""

    before: str
    after: str
    grades_before: Mapping[str, float]
    grades_after: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    trial: str
    question_set: str
    questions: Sequence[Answered]
    blank_before: int
    """Answers of the base model with nothing in them."""
    blank_after: int
    """Answers with the adapter with nothing in them."""
    forgetting: float
    """What the retention texts have lost, in nats per token; 0 without any."""
