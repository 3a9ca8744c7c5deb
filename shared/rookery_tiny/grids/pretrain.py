"""Make the grid model: `python -m rookery_tiny.grids.pretrain --out DIR --seed 0`. One to two hours on two CPU cores.

Three phases of fixed length, so that a seed names the weights: puzzles whose outputs are their inputs, until the model
copies a cell from the same place of another grid; rules of one step; then the mixture of documents.py. Of a puzzle the
loss counts every output but the first, which nobody can know; of what a teacher writes, the configuration.

Each step's documents are drawn from a seed of its own, so that a pre-training that was stopped goes on as if it had not
been: give the same command again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from rookery_tiny.documents import Document
from rookery_tiny.grids.documents import Mixture, copied, draw_document
from rookery_tiny.grids.tokenizer import INPUT, LONGEST, OUTPUT, make_tokenizer, token_of
from rookery_tiny.training import (
    Batch,
    Phase,
    Progress,
    Shape,
    Text,
    Vocabulary,
    finish,
    new_model,
    pack,
    train_phase,
)

Draw = Callable[[random.Random], Document]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights besides the seed."""

    shape: Shape = Shape(hidden=160, layers=6, heads=5, mlp=448, positions=LONGEST)
    rows: int = 10
    tokens_per_row: int = 384
    copying_steps: int = 400
    single_steps: int = 1400
    steps: int = 3300
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    mixture: Mixture = Mixture()

    @property
    def phases(self) -> list[tuple[Phase, Draw]]:
        """With what is read in them."""
        singles = replace(self.mixture, single=1.0, configuration=0.0)
        phase = partial(Phase, rate=self.learning_rate, weight_decay=self.weight_decay)
        return [
            (phase(name="copying", steps=self.copying_steps, decays=False), copied),
            (phase(name="single steps", steps=self.single_steps, decays=False), partial(draw_document, singles)),
            (phase(name="mixture", steps=self.steps), partial(draw_document, self.mixture)),
        ]


def as_text(document: Document, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The document's tokens, and which of them the loss counts: of a puzzle the outputs, from the second on."""
    prompt, completion = tokenizer.encode(document.prompt), tokenizer.encode(document.completion)
    tokens = [*prompt, *completion, int(tokenizer.eos_token_id)]
    begin, output = token_of(tokenizer, INPUT), token_of(tokenizer, OUTPUT)
    if prompt[-1] != output:
        return Text(tokens, predict_from=len(prompt))
    ends = [place + 1 for place, token in enumerate(prompt) if token == output]
    begins = [place for place, token in enumerate(prompt) if token == begin]
    first, *later = zip(begins, ends, strict=True)
    if not later:
        return Text(tokens, predict_from=first[1])
    return Text(tokens, predict_from=later[0][1], left_out=tuple(slice(*span) for span in later[1:]))


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, draw: Draw, *, seed: str, first: int
) -> Iterator[Batch]:
    """A batch for each step from the `first` on."""
    pad = int(tokenizer.pad_token_id)
    for step in count(first):
        rng = random.Random(f"{seed}-{step}")
        texts = (as_text(draw(rng), tokenizer) for _ in count())
        yield next(pack(texts, rows=recipe.rows, width=recipe.tokens_per_row, pad=pad))


def make_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, seed: int, progress: Progress
) -> Qwen2ForCausalLM:
    """A standard Qwen2 trained from nothing, or from where `progress` was kept."""
    model = new_model(recipe.shape, tokenizer, seed=seed)
    vocabulary = Vocabulary(tokenizer, model.model.embed_tokens.weight)
    current, done, state = progress.restore(model, vocabulary)
    for number, (phase, draw) in enumerate(recipe.phases):
        if number < current:
            continue
        read = batches(recipe, tokenizer, draw, seed=f"{phase.name}-{seed}", first=done)
        keep = partial(progress.keep, model, vocabulary, phase=number)
        train_phase(
            model,
            vocabulary,
            read,
            phase,
            done=done,
            state=state,
            after_step=lambda optimizer, step, keep=keep: keep(optimizer, step=step),  # type: ignore[misc]  # bound now
        )
        done, state = 0, {}
    return finish(model, vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    usual = Recipe()
    parser.add_argument("--copying-steps", type=int, default=usual.copying_steps)
    parser.add_argument("--single-steps", type=int, default=usual.single_steps)
    parser.add_argument("--steps", type=int, default=usual.steps, help="of the mixture")
    arguments = parser.parse_args()
    recipe = replace(
        usual, copying_steps=arguments.copying_steps, single_steps=arguments.single_steps, steps=arguments.steps
    )
    tokenizer = make_tokenizer()
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = Progress(arguments.out / "progress.pt", of=f"{recipe}, seed {arguments.seed}")
    model = make_model(recipe, tokenizer, seed=arguments.seed, progress=progress)
    model.bfloat16().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    progress.remove()


if __name__ == "__main__":
    main()
