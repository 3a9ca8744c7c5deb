"""Texts as tokens, for asking a model and for training it alike. Imports nothing that a bare machine lacks."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text that begins a sequence. A chat template may have written what the tokenizer begins with."""
    written = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=not written)
    return tokens


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
