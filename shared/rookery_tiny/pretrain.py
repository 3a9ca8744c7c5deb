"""Make the tiny model: `python -m rookery_tiny.pretrain --out DIR --seed 0`. A quarter of an hour on two CPU cores.

Two phases of fixed length, so that a seed names the weights: first, strings of random tokens that repeat themselves,
until the model has learned to copy from its context (without this, micro-world text alone teaches no copying in any
budget tried); then the mixture of documents.py.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from rookery_tiny.documents import Mixture, draw_document
from rookery_tiny.tokenizer import train_tokenizer
from rookery_tiny.training import Learner, Phase, Shape, Text, pack, train_phase
from rookery_tiny.world import (
    FEMALE_NAMES,
    MALE_NAMES,
    SURNAME_ENDS,
    SURNAME_STARTS,
    VALUES,
    Surnames,
    draw_world,
    surnames,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights besides the seed."""

    hidden: int = 192
    layers: int = 3
    heads: int = 6
    mlp: int = 512
    rows: int = 6
    tokens_per_row: int = 384
    copying_steps: int = 1200
    copying_rows: int = 16
    copying_tokens: int = 64
    copying_rate: float = 2e-3
    steps: int = 4000
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    known_pairs: int = 60
    quizzed_pairs: int = 48
    mixture: Mixture = Mixture()


def copying_documents(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Iterator[Text]:
    """Strings of the world's words in no order, each repeated: only copying predicts the second time."""
    words = [*VALUES, *FEMALE_NAMES, *MALE_NAMES, *SURNAME_STARTS, *SURNAME_ENDS]
    ids = sorted({token for word in words for token in tokenizer.encode(f" {word}")})
    while True:
        period = rng.randint(16, 32)
        unit = rng.choices(ids, k=period)
        yield Text((unit * 4)[: recipe.copying_tokens], predict_from=period)


def world_documents(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, rng: random.Random, *, seed: int
) -> Iterator[Text]:
    known = list(draw_world(Surnames.PRETRAINING, recipe.known_pairs, seed=seed))
    told = {s.surname for pair in known for s in pair.subjects}
    names = [name for name in surnames(Surnames.PRETRAINING) if name not in told]
    while True:
        document = draw_document(known, known[: recipe.quizzed_pairs], names, recipe.mixture, rng)
        prompt = tokenizer.encode(document.prompt) if document.prompt else []
        completion = tokenizer.encode(document.completion)
        yield Text([*prompt, *completion, tokenizer.eos_token_id], predict_from=max(1, len(prompt)))


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Qwen2ForCausalLM:
    """A standard Qwen2 trained from nothing."""
    shape = Shape(hidden=recipe.hidden, layers=recipe.layers, heads=recipe.heads, mlp=recipe.mlp)
    learner = Learner(shape, tokenizer, seed=seed)
    rng = random.Random(f"pretrain-{seed}")
    pad = int(tokenizer.pad_token_id)
    copying = pack(
        copying_documents(recipe, tokenizer, rng), rows=recipe.copying_rows, width=recipe.copying_tokens, pad=pad
    )
    decay = recipe.weight_decay
    first = Phase(name="copying", steps=recipe.copying_steps, rate=recipe.copying_rate, weight_decay=decay)
    train_phase(learner, copying, first)
    world = pack(
        world_documents(recipe, tokenizer, rng, seed=seed), rows=recipe.rows, width=recipe.tokens_per_row, pad=pad
    )
    second = Phase(name="world", steps=recipe.steps, rate=recipe.learning_rate, weight_decay=decay)
    train_phase(learner, world, second)
    return learner.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer()
    model = make_model(Recipe(), tokenizer, seed=arguments.seed)
    model.bfloat16().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
