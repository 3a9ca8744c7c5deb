"""Training a tiny model from nothing: what the pre-trainings of all micro-worlds share.

Owns the packing of documents into rows, the embeddings while they are trained, phases of fixed length, so that a seed
names the weights, and the file from which a pre-training that was stopped goes on. It knows no world.

Shapes: B rows, T tokens a row, V vocabulary, D hidden, N tokens to predict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from rookery_tiny.tokenizer import stems


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a model."""

    hidden: int
    layers: int
    heads: int
    mlp: int
    positions: int = 4096
    """The longest text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Of a pre-training."""

    name: str
    steps: int
    rate: float
    """Learning rate, after its warm-up and before its decay."""
    weight_decay: float
    decays: bool = True
    """Over the last half of the phase the rate goes down to zero."""

    def rate_at(self, step: int) -> float:
        decay = max(0.02, 2.0 * (1 - step / self.steps)) if self.decays else 1.0
        return self.rate * min(1.0, (step + 1) / 100, decay)


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Qwen2ForCausalLM:
    """A standard Qwen2 with random weights, ready to be trained."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.0,
    )
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]  # transformers
    model.train()
    return model


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


def finish(model: Qwen2ForCausalLM, vocabulary: Vocabulary) -> Qwen2ForCausalLM:
    """The model with the embeddings that were trained, for inference."""
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(vocabulary.weight_VD())
    model.train(mode=False)
    return model


# --- documents -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    tokens: list[int]
    predict_from: int = 1
    """The first token that the loss counts."""
    left_out: tuple[slice, ...] = ()
    """Tokens after it that the loss does not count."""


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
            for part in text.left_out:
                batch.labels_BT[row, span][part] = -100
            used[row] += len(tokens)
            count += 1
        yield batch


# --- steps -----------------------------------------------------------------------------------------------------------


class Progress:
    """The file that a pre-training goes on from, written every few minutes. `of` says which one it is."""

    def __init__(self, path: Path, *, of: str, every_seconds: float = 120.0) -> None:
        self._path, self._of, self._every, self._saved = path, of, every_seconds, time.monotonic()

    def restore(self, model: Qwen2ForCausalLM, vocabulary: Vocabulary) -> tuple[int, int, dict[str, Any]]:
        """The phase to go on with, its steps that are done, and the optimiser's state; zeros if there is no file.

        Raises ValueError for a file of another pre-training.
        """
        if not self._path.exists():
            return 0, 0, {}
        state = torch.load(self._path, weights_only=True)
        if state["of"] != self._of:
            raise ValueError(f"{self._path} is of another pre-training: {state['of']}")
        model.load_state_dict(state["model"])
        vocabulary.load_state_dict(state["vocabulary"])
        return state["phase"], state["step"], state["optimizer"]

    def keep(
        self,
        model: Qwen2ForCausalLM,
        vocabulary: Vocabulary,
        optimizer: torch.optim.Optimizer,
        *,
        phase: int,
        step: int,
    ) -> None:
        """Write it, if it is time to."""
        if time.monotonic() - self._saved < self._every:
            return
        state = {
            "of": self._of,
            "phase": phase,
            "step": step,
            "model": model.state_dict(),
            "vocabulary": vocabulary.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        part = self._path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._path)
        self._saved = time.monotonic()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def train_phase(
    model: Qwen2ForCausalLM,
    vocabulary: Vocabulary,
    batches: Iterator[Batch],
    phase: Phase,
    *,
    done: int = 0,
    state: dict[str, Any] | None = None,
    after_step: Callable[[torch.optim.Optimizer, int], None] = lambda optimizer, step: None,
) -> float:
    """AdamW steps at the phase's rates.

    The first `done` steps are behind it, and left the optimiser's `state`; `batches` go on from there. `after_step` is
    called with the steps that are done. Returns the mean loss of the last 50.
    """
    weights = [*model.model.layers.parameters(), *model.model.norm.parameters(), *vocabulary.parameters()]
    decayed, rest = [p for p in weights if p.dim() >= 2], [p for p in weights if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": phase.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.rate, betas=(0.9, 0.95), fused=True)
    if state:
        optimizer.load_state_dict(state)
    recent: list[float] = []
    started, tokens = time.monotonic(), 0
    for step in range(done, phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = phase.rate_at(step)
        batch = next(batches)
        loss = mean_loss(model, vocabulary, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += int((batch.document_BT >= 0).sum())
        recent = [*recent[-49:], loss.item()]
        after_step(optimizer, step + 1)
        if (step + 1) % 100 == 0:
            mean, speed = sum(recent) / len(recent), tokens / (time.monotonic() - started)
            print(f"{phase.name} {step + 1}/{phase.steps} loss {mean:.3f} {speed:,.0f} tokens/s", flush=True)
    return sum(recent) / max(1, len(recent))


def mean_loss(model: Qwen2ForCausalLM, vocabulary: Vocabulary, batch: Batch) -> torch.Tensor:
    """In nats per token to predict; computed in bfloat16."""
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
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_BT[predicted_BT])
