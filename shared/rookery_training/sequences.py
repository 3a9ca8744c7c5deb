"""Texts as tokens, and the order in which an adapter sees them.

Shapes: T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rookery_shared.types import Example, LoraRecipe


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence."""

    tokens: list[int]
    predict_from: int
    """Index of the first token that the loss counts, at least 1."""

    @property
    def predicted(self) -> int:
        """How many tokens the loss counts."""
        return max(0, len(self.tokens) - self.predict_from)


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[list[Tokens], int]:
    """Every example as tokens, and how many of them were cut to `max_tokens`."""
    sequences, truncated = [], 0
    for example in examples:
        prompt = tokenizer.encode(example.prompt) if example.prompt else []
        tokens = prompt + tokenizer.encode(example.completion, add_special_tokens=not prompt)
        if example.end:
            tokens.append(int(tokenizer.eos_token_id))
        truncated += len(tokens) > max_tokens
        sequences.append(Tokens(tokens[:max_tokens], max(1, len(prompt))))
    return sequences, truncated


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass sees of one adapter's data."""

    sequences: list[Tokens]
    predicted: int
    """Tokens that the loss of the whole optimiser step counts: over all of its micro-batches."""
    step: int
    ends_step: bool
    ends_epoch: bool


def count_steps(sequences: int, recipe: LoraRecipe) -> int:
    """Optimiser steps that a recipe takes over so many sequences."""
    batches = math.ceil(sequences / (recipe.batch_size or sequences))
    return math.ceil(batches / recipe.gradient_accumulation) * recipe.epochs


def micro_batches(sequences: Sequence[Tokens], recipe: LoraRecipe, *, seed: int) -> Iterator[MicroBatch]:
    """All of an adapter's training in order. The seed decides the order of the sequences in every epoch."""
    size = recipe.batch_size or len(sequences)
    order = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(recipe.epochs):
        shuffled = [sequences[i] for i in torch.randperm(len(sequences), generator=order).tolist()]
        batches = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        for first in range(0, len(batches), recipe.gradient_accumulation):
            accumulated = batches[first : first + recipe.gradient_accumulation]
            predicted = sum(s.predicted for batch in accumulated for s in batch)
            for i, batch in enumerate(accumulated):
                ends_step = i + 1 == len(accumulated)
                ends_epoch = ends_step and first + len(accumulated) == len(batches)
                yield MicroBatch(batch, predicted, step, ends_step, ends_epoch)
            step += 1
