"""Texts that are held to a JSON schema: which tokens may come next. By llguidance, which vLLM can use as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_AS_PYTHON_WRITES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Else a model may fill its tokens with white space."""


@lru_cache
def guided(schema: str) -> str:
    """The schema with what llguidance needs to know besides. Raises ValueError for a schema that it cannot hold to."""
    with_layout = json.dumps({**json.loads(schema), "x-guidance": _AS_PYTHON_WRITES})
    if trouble := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(with_layout)):
        raise ValueError(f"no text can be held to this schema: {trouble}")
    return with_layout


class Held:
    """One text on its way, held to a schema."""

    def __init__(self, tokenizer: LLTokenizer, schema: str) -> None:
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(guided(schema)))

    def allowed_V(self) -> Tensor:
        """True for the tokens that may come next; only those that close the text once it is complete."""
        return torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)


class Constraints:
    """Holds texts of one tokenizer to schemas. `stop` are the tokens that close a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, vocabulary: int, stop: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary, self._stop = tokenizer, vocabulary, [*stop]

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """A second's work for a large vocabulary, and most engines are never asked for it."""
        return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._stop)  # type: ignore[arg-type]  # a fast one

    def hold_to(self, schema: str) -> Held | None:
        """None for an empty schema, which allows all."""
        return Held(self._tokens, schema) if schema else None
