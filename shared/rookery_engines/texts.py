"""A tokenizer as engines use it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rookery_engines.types import GenerationRequest, LikelihoodRequest, ModelIdentity
from rookery_shared.errors import PromptTooLong


class Texts:
    """Texts as tokens of one model, which reads at most `limit` of them, and back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, identity: ModelIdentity, *, limit: int) -> None:
        self._tokenizer, self._identity, self._limit = tokenizer, identity, limit

    def prompt(self, request: GenerationRequest) -> tuple[list[int], int]:
        """The prompt, and the most tokens that may follow. Raises PromptTooLong if none may."""
        prompt: list[int] = self._tokenizer.encode(request.prompt)
        if len(prompt) >= self._limit:
            raise PromptTooLong(
                f"the prompt has {len(prompt):,} tokens; {self._identity} reads at most {self._limit:,}"
            )
        return prompt, min(request.sampling.max_new_tokens, self._limit - len(prompt))

    def pair(self, request: LikelihoodRequest) -> tuple[list[int], list[int]]:
        """Prompt and completion."""
        return (
            self._tokenizer.encode(request.prompt),
            self._tokenizer.encode(request.completion, add_special_tokens=False),
        )

    def text(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode([*tokens], skip_special_tokens=True)
        assert isinstance(text, str)  # a list only for a list of lists
        return text
