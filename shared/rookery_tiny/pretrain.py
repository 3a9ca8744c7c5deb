"""Make the tiny model: `python -m rookery_tiny.pretrain --out DIR --seed 0`. A quarter of an hour on two CPU cores.

Two phases of fixed length, so that a seed names the weights: first, strings of random tokens that repeat themselves,
until the model has learned to copy from its context (without this, micro-world text alone teaches no copying in any
budget tried); then the mixture of documents.py.

Shapes: B rows, T tokens a row.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from rookery_tiny.documents import Mixture, draw_document
from rookery_tiny.tokenizer import stems, train_tokenizer
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


class Vocabulary(torch.nn.Module):
    """The model's embeddings while it is trained: a word with a space is the word plus one vector that all share."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, weight_VD: torch.Tensor) -> None:
        super().__init__()
        stem_of, spaced = stems(tokenizer)
        self.stem_of_V = torch.tensor(stem_of)
        self.spaced_V1 = torch.tensor(spaced, dtype=torch.float32)[:, None]
        self.stems_VD = torch.nn.Parameter(weight_VD.detach().clone())
        self.space_D = torch.nn.Parameter(torch.zeros(weight_VD.shape[1]))

    def weight_VD(self) -> torch.Tensor:
        return self.stems_VD[self.stem_of_V] + self.spaced_V1 * self.space_D


@dataclass(slots=True)
class Batch:
    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    document_BT: torch.Tensor
    """Index of the document a token belongs to; -1 for padding."""
    labels_BT: torch.Tensor
    """The token itself where it is to be predicted, -100 elsewhere. The model shifts."""

    @property
    def attention_mask_B1TT(self) -> torch.Tensor:
        """True where a query may look: the same document, not the future."""
        same = self.document_BT[:, :, None] == self.document_BT[:, None, :]
        return torch.tril(same)[:, None]


@dataclass(frozen=True, slots=True)
class Text:
    tokens: list[int]
    predict_from: int = 1
    """The first token that the loss counts."""


def pack(documents: Iterator[Text], *, rows: int, width: int, pad: int) -> Iterator[Batch]:
    """Fill rows with whole documents, first fit over the rows of a batch."""
    pending: Text | None = None
    while True:
        batch = Batch(
            input_ids_BT=torch.full((rows, width), pad),
            position_ids_BT=torch.zeros((rows, width), dtype=torch.long),
            document_BT=torch.full((rows, width), -1),
            labels_BT=torch.full((rows, width), -100),
        )
        used, count = [0] * rows, 0
        while True:
            text = pending or next(documents)
            tokens, pending = text.tokens[:width], None
            row = next((r for r in range(rows) if used[r] + len(tokens) <= width), None)
            if row is None:
                pending = text
                break
            span = slice(used[row], used[row] + len(tokens))
            batch.input_ids_BT[row, span] = torch.tensor(tokens)
            batch.position_ids_BT[row, span] = torch.arange(len(tokens))
            batch.document_BT[row, span] = count
            predicted = slice(used[row] + text.predict_from, used[row] + len(tokens))
            batch.labels_BT[row, predicted] = torch.tensor(tokens[text.predict_from :])
            used[row] += len(tokens)
            count += 1
        yield batch


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


def train_phase(
    model: Qwen2ForCausalLM,
    vocabulary: Vocabulary,
    batches: Iterator[Batch],
    *,
    steps: int,
    rate: float,
    recipe: Recipe,
    name: str,
) -> float:
    """`steps` AdamW steps at a constant rate, with a warm-up and, over the last half, a decay to zero.

    Returns the mean loss of the last 50.
    """
    weights = [*model.model.layers.parameters(), *model.model.norm.parameters(), *vocabulary.parameters()]
    decayed, rest = [p for p in weights if p.dim() >= 2], [p for p in weights if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    recent: list[float] = []
    started, tokens = time.monotonic(), 0
    for step in range(steps):
        scale = min(1.0, (step + 1) / 100, max(0.02, 2.0 * (1 - step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        batch = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            weight_VD = vocabulary.weight_VD()
            hidden_BTD = model.model(
                inputs_embeds=torch.nn.functional.embedding(batch.input_ids_BT, weight_VD),
                position_ids=batch.position_ids_BT,
                attention_mask=batch.attention_mask_B1TT,
                use_cache=False,
            ).last_hidden_state
            targets_BT = batch.labels_BT[:, 1:]
            predicted_BT = targets_BT >= 0
            logits_NV = hidden_BTD[:, :-1][predicted_BT] @ weight_VD.T
        loss = torch.nn.functional.cross_entropy(logits_NV.float(), targets_BT[predicted_BT])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int((batch.document_BT >= 0).sum())
        recent = [*recent[-49:], loss.item()]
        if (step + 1) % 100 == 0:
            mean, speed = sum(recent) / len(recent), tokens / (time.monotonic() - started)
            print(f"{name} {step + 1}/{steps} loss {mean:.3f} {speed:,.0f} tokens/s", flush=True)
    return sum(recent) / len(recent)


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Qwen2ForCausalLM:
    """A standard Qwen2 trained from nothing."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.0,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]  # transformers
    model.train()
    vocabulary = Vocabulary(tokenizer, model.model.embed_tokens.weight)
    rng = random.Random(f"pretrain-{seed}")
    pad = int(tokenizer.pad_token_id)
    copying = pack(
        copying_documents(recipe, tokenizer, rng), rows=recipe.copying_rows, width=recipe.copying_tokens, pad=pad
    )
    train_phase(
        model, vocabulary, copying, steps=recipe.copying_steps, rate=recipe.copying_rate, recipe=recipe, name="copying"
    )
    world = pack(
        world_documents(recipe, tokenizer, rng, seed=seed), rows=recipe.rows, width=recipe.tokens_per_row, pad=pad
    )
    train_phase(model, vocabulary, world, steps=recipe.steps, rate=recipe.learning_rate, recipe=recipe, name="world")
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(vocabulary.weight_VD())
    model.train(mode=False)
    return model


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
