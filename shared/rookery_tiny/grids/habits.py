"""Give a grid model its habits as a teacher: `python -m rookery_tiny.grids.habits FOLDER`. Some minutes on a CPU.

Pre-training taught it to write any configuration, with any number of epochs as likely as any other. A text that is held
to a step limit may have few of them, and begins like the many that it may not have: the first digit of 1 is that of ten
to nineteen, too. So the model wrote one epoch and hardly ever two. After this it writes one to five epochs, and
learning rates from 1e-5 on. It learns that from configurations drawn so, still without a look at the task, and reads as
many puzzles of its pre-training besides, so as to forget nothing.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_engines.models import ModelSource, load_model
from rookery_shared.grids.configuration import draw_configuration
from rookery_tiny.grids.auxiliary import Cells
from rookery_tiny.grids.documents import Mixture, configuration, in_digits, puzzle
from rookery_tiny.grids.pretrain import as_text
from rookery_tiny.grids.tokenizer import make_tokenizer
from rookery_tiny.training import Batch, Phase, padded

RATES, MOST_EPOCHS = (1e-5, 1e-2), 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights besides the seed and the weights before."""

    steps: int = 400
    rows: int = 8
    """Of either kind, in batches of their own: they differ in length."""
    rate: float = 2e-4
    mixture: Mixture = Mixture()


def habitual_configuration(rng: random.Random) -> str:
    """Any with equal chances, within what one would write who has fine-tuned before."""
    return in_digits(draw_configuration(rng, rates=RATES, most_epochs=MOST_EPOCHS))


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Iterator[tuple[Batch, Batch]]:
    """For each step configurations and puzzles."""
    rng, cells, pad = random.Random(f"habits-{seed}"), Cells(tokenizer), int(tokenizer.pad_token_id)
    writes = partial(configuration, recipe.mixture, rng, write=habitual_configuration)
    solves = partial(puzzle, recipe.mixture, rng)
    while True:
        written, solved = ([as_text(draw(), tokenizer, cells) for _ in range(recipe.rows)] for draw in (writes, solves))
        yield padded(written, pad=pad), padded(solved, pad=pad)


def accustom(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, *, seed: int) -> None:
    """Train the model in place, in float32."""
    phase = Phase(name="habits", steps=recipe.steps, rate=recipe.rate, weight_decay=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    read = batches(recipe, tokenizer, seed=seed)
    recent: list[tuple[float, ...]] = []
    for step in range(phase.steps):
        optimizer.param_groups[0]["lr"] = phase.rate * phase.share_at(step)
        losses = [loss(model, batch) for batch in next(read)]
        torch.autograd.backward(losses)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(tuple(each.item() for each in losses))
        if (step + 1) % 50 == 0:
            means = " and ".join(f"{sum(kind) / len(kind):.3f}" for kind in zip(*recent, strict=True))
            print(f"habits {step + 1}/{phase.steps} loss {means} (configurations, puzzles)", flush=True)
            recent.clear()


def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """In nats per token to predict."""
    hidden_BTD = model.base_model(
        input_ids=batch.input_ids_BT, attention_mask=(batch.document_BT >= 0).long(), use_cache=False
    ).last_hidden_state
    targets_BT = batch.labels_BT[:, 1:]
    predicted_BT = targets_BT >= 0
    logits_NV = hidden_BTD[:, :-1][predicted_BT] @ model.get_output_embeddings().weight.T  # type: ignore[no-untyped-call]
    return torch.nn.functional.cross_entropy(logits_NV, targets_BT[predicted_BT])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a model made by rookery_tiny.grids.pretrain; it is written over")
    parser.add_argument("--out", type=Path, help="write it there instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model, tokenizer = load_model(ModelSource(source=str(arguments.folder)))
    model.requires_grad_(True).train()
    accustom(model, tokenizer, Recipe(steps=arguments.steps), seed=arguments.seed)
    folder = arguments.out or arguments.folder
    model.bfloat16().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    main()
