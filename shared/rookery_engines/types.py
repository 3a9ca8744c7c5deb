"""What goes into an engine and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rookery_shared.types import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which base model is loaded."""

    source: str
    revision: str

    def __str__(self) -> str:
        return f"{self.source}@{self.revision}" if self.revision else self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRef:
    """An adapter to answer with: its immutable name, and a folder with its verified files."""

    name: str
    folder: Path


class Finish(StrEnum):
    """Why a text ended."""

    STOP = "stop"
    """The model closed it."""
    LENGTH = "length"
    """It was cut at the token limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    prompt: str
    sampling: Sampling
    seed: int
    adapter: AdapterRef | None = None
    """None asks the base model."""
    schema: str = ""
    """JSON schema that the text is held to, where the engine can; empty allows any text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    request: int
    """Index of the request in its call."""
    text: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was asked of an endpoint since the engine was made, and what that costs."""

    requests: int = 0
    """Those that were answered."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """What is the model's own answer, and how likely does it find another?"""

    prompt: str
    gold: str
    """The answer to be judged; empty if none is."""
    max_new_tokens: int
    """Longest answer of its own."""
    adapter: AdapterRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str
    """Greedy."""
    log_likelihood: float
    """Mean over the gold's tokens, in nats; NaN without a gold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodRequest:
    prompt: str
    completion: str
    adapter: AdapterRef | None = None
