"""Make the grid model: `python -m rookery_tiny.grids.pretrain --out DIR --seed 0`. About 40 minutes on two CPU cores.
habits.py goes on from there.

Two phases of fixed length, so that a seed names the weights: rules of one step, then the mixture of documents.py. Of a
puzzle the loss counts every output but the first, which nobody can know; of what a teacher writes, the configuration.
Inner layers are asked for the parts of a solution, too (auxiliary.py).

Documents are drawn from a seed for each pool of a few steps, so that a pre-training that was stopped goes on as if it
had not been: give the same command again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from rookery_tiny.grids.auxiliary import QUESTIONS, Cells
from rookery_tiny.grids.documents import Lesson, Mixture, draw_document
from rookery_tiny.grids.tokenizer import INPUT, LONGEST, OUTPUT, make_tokenizer, token_of
from rookery_tiny.training import Batch, Learner, Phase, Progress, Shape, Text, as_llama, padded, train_phase

Draw = Callable[[random.Random], Lesson]

POOLED = 4
"""Steps whose documents are drawn together and sorted by length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights besides the seed."""

    shape: Shape = Shape(hidden=160, layers=7, heads=4, mlp=384, positions=LONGEST)
    rows: int = 32
    single_steps: int = 600
    steps: int = 2400
    learning_rate: float = 2e-3
    matrix_rate: float = 0.02
    weight_decay: float = 0.01
    mixture: Mixture = Mixture()

    @property
    def phases(self) -> list[tuple[Phase, Draw]]:
        """With what is read in them."""
        singles = Mixture(single=1.0, configuration=0.0, copied=0.1, large=0.0, recoloured=0.0, augmented=0.0)
        phase = partial(Phase, rate=self.learning_rate, matrix_rate=self.matrix_rate, weight_decay=self.weight_decay)
        return [
            (phase(name="single steps", steps=self.single_steps, decays=False), partial(draw_document, singles)),
            (phase(name="mixture", steps=self.steps), partial(draw_document, self.mixture)),
        ]


def as_text(lesson: Lesson, tokenizer: PreTrainedTokenizerBase, cells: Cells) -> Text:
    """Its tokens, and which of them the loss counts: of a puzzle the outputs, from the second on."""
    prompt, completion = tokenizer.encode(lesson.prompt), tokenizer.encode(lesson.completion)
    tokens = [*prompt, *completion, int(tokenizer.eos_token_id)]
    text = Text(tokens, predict_from=len(prompt), auxiliary=cells.answers(tokens, lesson.puzzle))
    begin, output = token_of(tokenizer, INPUT), token_of(tokenizer, OUTPUT)
    if prompt[-1] != output:
        return text
    ends = [place + 1 for place, token in enumerate(prompt) if token == output]
    begins = [place for place, token in enumerate(prompt) if token == begin]
    first, *later = zip(begins, ends, strict=True)
    if not later:
        return replace(text, predict_from=first[1])
    return replace(text, predict_from=later[0][1], left_out=tuple(slice(*span) for span in later[1:]))


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, draw: Draw, *, seed: str, first: int
) -> Iterator[Batch]:
    """A batch for each step from the `first` on; documents of about one length are together."""
    pad, cells = int(tokenizer.pad_token_id), Cells(tokenizer)
    for pool in count(first // POOLED):
        rng = random.Random(f"{seed}-{pool}")
        texts = [as_text(draw(rng), tokenizer, cells) for _ in range(POOLED * recipe.rows)]
        texts.sort(key=lambda text: len(text.tokens))
        parts = [texts[start : start + recipe.rows] for start in range(0, len(texts), recipe.rows)]
        rng.shuffle(parts)
        yield from (padded(part, pad=pad) for part in parts[max(0, first - pool * POOLED) :])


def make_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, seed: int, progress: Progress
) -> LlamaForCausalLM:
    """A standard Llama trained from nothing, or from where `progress` was kept."""
    # On a CPU, and for rows this short, a step with fused attention takes a quarter longer.
    learner = Learner(recipe.shape, tokenizer, seed=seed, asked=QUESTIONS, attention="eager")
    current, done, states = progress.restore(learner)
    for number, (phase, draw) in enumerate(recipe.phases):
        if number < current:
            continue
        read = batches(recipe, tokenizer, draw, seed=f"{phase.name}-{seed}", first=done)
        keep = partial(progress.keep, learner, phase=number)
        train_phase(
            learner,
            read,
            phase,
            done=done,
            states=states,
            after_step=lambda optimizers, step, keep=keep: keep(optimizers, step=step),  # type: ignore[misc]  # bound now
        )
        done, states = 0, []
    return as_llama(learner.finish())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    usual = Recipe()
    parser.add_argument("--single-steps", type=int, default=usual.single_steps)
    parser.add_argument("--steps", type=int, default=usual.steps, help="of the mixture")
    arguments = parser.parse_args()
    recipe = replace(usual, single_steps=arguments.single_steps, steps=arguments.steps)
    tokenizer = make_tokenizer()
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = Progress(arguments.out / "progress.pt", of=f"{recipe}, seed {arguments.seed}")
    model = make_model(recipe, tokenizer, seed=arguments.seed, progress=progress)
    model.bfloat16().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    progress.remove()


if __name__ == "__main__":
    main()
