"""The interface. One file for each engine: `transformers`, `vllm`, `openai`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, runtime_checkable

from rookery_engines.types import (
    AdapterRef,
    Answer,
    AnswerRequest,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
    ModelIdentity,
    Usage,
)


class Engine(Protocol):
    """A loaded base model that answers with any adapter of it. Calls may overlap; none blocks the event loop."""

    @property
    def identity(self) -> ModelIdentity: ...

    @property
    def name(self) -> str: ...

    @property
    def max_adapters(self) -> int:
        """Adapters that it keeps in memory, and so the most that answer in one batch."""
        ...

    @property
    def rounding(self) -> float:
        """Nats by which a text's mean log-likelihood may differ from batch to batch."""
        ...

    def ask(self, text: str) -> str:
        """A prompt as the model is used to being asked: through its chat template, if the profile says so."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        """Texts as they finish, in any order. The same request and seed give the same text on the same device.

        Raises AdapterMismatch if an adapter does not fit the base. Closing the iterator stops the work.
        """
        ...

    async def log_likelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Mean log-likelihood of each completion's tokens given its prompt, in nats."""
        ...

    async def answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
        """What `generate` writes at temperature 0, and what `log_likelihoods` says of the gold answers.

        An engine may read a prompt once for both. Raises AdapterMismatch or PromptTooLong.
        """
        ...

    async def load(self, adapter: AdapterRef) -> None:
        """Get an adapter ready ahead of the first request for it. Raises AdapterMismatch."""
        ...

    def loaded(self) -> list[str]:
        """Names of the adapters in memory."""
        ...

    async def watch(self) -> None:
        """Wait for as long as the engine can answer. Raises EngineDead when it never will again."""
        ...

    def close(self) -> None:
        """End what runs beside this process. It answers no more."""
        ...


@runtime_checkable
class Metered(Protocol):
    """An engine whose answers cost money."""

    @property
    def usage(self) -> Usage: ...
