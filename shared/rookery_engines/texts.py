"""A tokenizer as engines use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from rookery_engines.encoding import encode
from rookery_engines.types import GenerationRequest, LikelihoodRequest, ModelIdentity
from rookery_shared.errors import ModelNotLoadable, PromptTooLong

DATE = "26 Jul 2024"
FIXED: Mapping[str, Any] = {"strftime_now": lambda _: DATE, "date_string": DATE, "enable_thinking": False}
"""What chat templates may ask for: a date, which must not be the day's, or the same request would read differently
tomorrow; and whether to reason first, for which texts of this length have no room."""


class Texts:
    """Texts as tokens of one model, which reads at most `limit` of them, and back.

    Raises ModelNotLoadable for a model that is asked by `chat` and has no template for it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, identity: ModelIdentity, *, limit: int, chat: bool) -> None:
        if chat and not tokenizer.chat_template:
            raise ModelNotLoadable(f"{identity} has no chat template", source=identity.source)
        self._tokenizer, self._identity, self._limit, self._chat = tokenizer, identity, limit, chat

    def ask(self, text: str) -> str:
        """A prompt as the model is used to being asked."""
        if not self._chat:
            return text
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, **FIXED
        )
        assert isinstance(prompt, str)  # tokens only if asked for
        return prompt

    def prompt(self, request: GenerationRequest) -> tuple[list[int], int]:
        """The prompt, and the most tokens that may follow. Raises PromptTooLong if none may."""
        return self._prompt(request.prompt, request.sampling.max_new_tokens)

    def _prompt(self, text: str, max_new_tokens: int) -> tuple[list[int], int]:
        prompt = encode(self._tokenizer, text)
        if len(prompt) >= self._limit:
            raise PromptTooLong(
                f"the prompt has {len(prompt):,} tokens; {self._identity} reads at most {self._limit:,}"
            )
        return prompt, min(max_new_tokens, self._limit - len(prompt))

    def answer(self, prompt: str, gold: str, max_new_tokens: int) -> tuple[list[int], list[int], int]:
        """Prompt, gold answer, and the most tokens of the model's own. Raises PromptTooLong as `prompt` and `pair`."""
        tokens, most = self._prompt(prompt, max_new_tokens)
        return tokens, self._completion(gold, after=len(tokens)), most

    def pair(self, request: LikelihoodRequest) -> tuple[list[int], list[int]]:
        """Prompt and completion. Raises PromptTooLong if the model cannot read both."""
        prompt = encode(self._tokenizer, request.prompt)
        return prompt, self._completion(request.completion, after=len(prompt))

    def _completion(self, text: str, *, after: int) -> list[int]:
        completion: list[int] = self._tokenizer.encode(text, add_special_tokens=False) if text else []
        if (tokens := after + len(completion)) >= self._limit:
            raise PromptTooLong(f"a text has {tokens:,} tokens; {self._identity} reads fewer than {self._limit:,}")
        return completion

    def text(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode([*tokens], skip_special_tokens=True)
        assert isinstance(text, str)  # a list only for a list of lists
        return text
