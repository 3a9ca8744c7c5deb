"""Training a tiny model from nothing: what the pre-trainings of all micro-worlds share.

Owns the rows of documents, the embeddings while they are trained, what inner layers are asked, phases of fixed length,
so that a seed names the weights, and the file from which a pre-training that was stopped goes on. It knows no world.

Shapes: B rows, T tokens a row, V vocabulary, D hidden, N tokens to predict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

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
    """Over the last half of the phase the rates go down to zero."""
    matrix_rate: float | None = None
    """Learning rate of the layers' matrices, by Muon; None leaves them to AdamW with the rest."""

    def share_at(self, step: int) -> float:
        """Of the rates."""
        decay = max(0.02, 2.0 * (1 - step / self.steps)) if self.decays else 1.0
        return min(1.0, (step + 1) / 100, decay)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Auxiliary:
    """What an inner layer is asked about a token, as auxiliary classifiers ask (Szegedy et al. 2015)."""

    layer: int
    """After so many layers."""
    classes: int
    weight: float
    """Of its loss; that of the tokens to predict has 1."""


class Learner(torch.nn.Module):
    """A model while it is trained: with the embeddings that are, and a linear readout for each auxiliary question."""

    def __init__(
        self,
        shape: Shape,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        asked: Mapping[str, Auxiliary] | None = None,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        self.model = new_model(shape, tokenizer, seed=seed)
        self.model.set_attn_implementation(attention)
        self.vocabulary = Vocabulary(tokenizer, self.model.model.embed_tokens.weight)
        self.asked = dict(asked or {})
        self.readouts = torch.nn.ModuleDict(
            {name: torch.nn.Linear(shape.hidden, question.classes) for name, question in self.asked.items()}
        )

    def trained(self) -> list[torch.nn.Parameter]:
        """The weights that are."""
        network = self.model.model
        parts = (network.layers, network.norm, self.vocabulary, self.readouts)
        return [parameter for part in parts for parameter in part.parameters()]

    def matrices(self) -> list[torch.nn.Parameter]:
        """Those of them that the layers multiply by."""
        return [parameter for parameter in self.model.model.layers.parameters() if parameter.dim() >= 2]

    def loss(self, batch: Batch) -> tuple[torch.Tensor, float]:
        """In nats per token to predict, computed in bfloat16: with the auxiliary losses, and without."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            weight_VD = self.vocabulary.weight_VD()
            outputs = self.model.model(
                inputs_embeds=torch.nn.functional.embedding(batch.input_ids_BT, weight_VD),
                position_ids=batch.position_ids_BT,
                attention_mask=batch.attention_mask_B1TT,
                use_cache=False,
                output_hidden_states=bool(self.asked),
            )
            targets_BT = batch.labels_BT[:, 1:]
            predicted_BT = targets_BT >= 0
            logits_NV = outputs.last_hidden_state[:, :-1][predicted_BT] @ weight_VD.T
        loss = torch.nn.functional.cross_entropy(logits_NV.float(), targets_BT[predicted_BT])
        total = loss
        for name, question in self.asked.items():
            total = total + question.weight * self._auxiliary_loss(
                name, outputs.hidden_states[question.layer], batch.auxiliary_BT[name]
            )
        return total, loss.item()

    def _auxiliary_loss(self, name: str, hidden_BTD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Of the tokens that have a target. Layers differ in their scale, so the readout has none to learn."""
        asked_BT = targets_BT >= 0
        if not asked_BT.any():
            return hidden_BTD.new_zeros(())
        hidden_ND = torch.nn.functional.rms_norm(hidden_BTD[asked_BT].float(), (hidden_BTD.shape[-1],))
        return torch.nn.functional.cross_entropy(self.readouts[name](hidden_ND), targets_BT[asked_BT])

    def finish(self) -> Qwen2ForCausalLM:
        """The model with the embeddings that were trained, for inference."""
        with torch.no_grad():
            self.model.model.embed_tokens.weight.copy_(self.vocabulary.weight_VD())
        self.model.train(mode=False)
        return self.model


_IN_BOTH = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings that a Qwen2 and a Llama share."""


def as_llama(model: Qwen2ForCausalLM) -> LlamaForCausalLM:
    """The same function under another name.

    For a Qwen2, AutoTokenizer (transformers 5) makes any tokenizer one of Qwen's own; a Llama keeps what it has.
    """
    config = LlamaConfig(**{name: getattr(model.config, name) for name in _IN_BOTH}, attention_bias=True)
    llama = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]  # transformers
    missing, unexpected = llama.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected, unexpected
    biases = dict(llama.named_parameters())
    for name in missing:
        assert name.endswith("o_proj.bias"), name
        torch.nn.init.zeros_(biases[name])
    llama.train(mode=False)
    return llama


# --- documents -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    tokens: list[int]
    predict_from: int = 1
    """The first token that the loss counts."""
    left_out: tuple[slice, ...] = ()
    """Tokens after it that the loss does not count."""
    auxiliary: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By auxiliary question the right class for each token, -100 where there is none."""


@dataclass(slots=True)
class Batch:
    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    document_BT: torch.Tensor
    """Index of the document a token belongs to; -1 for padding."""
    labels_BT: torch.Tensor
    """The token itself where it is to be predicted, -100 elsewhere. The model shifts."""
    auxiliary_BT: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The right class by auxiliary question, -100 where there is none."""

    @property
    def attention_mask_B1TT(self) -> torch.Tensor | None:
        """True where a query may look: the same document, not the future. None for rows of one document: not ahead."""
        if self.document_BT.max() == 0:
            return None
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


def padded(texts: Sequence[Text], *, pad: int) -> Batch:
    """A row for each. Texts of about one length make the least of padding, and of attention."""
    width = max(len(text.tokens) for text in texts)

    def rows(values: Iterator[Sequence[int]], rest: int) -> torch.Tensor:
        return torch.tensor([[*value, *[rest] * (width - len(value))] for value in values])

    return Batch(
        input_ids_BT=rows((text.tokens for text in texts), pad),
        position_ids_BT=torch.arange(width).expand(len(texts), width),
        document_BT=rows(([0] * len(text.tokens) for text in texts), -1),
        labels_BT=rows((_labels(text) for text in texts), -100),
        auxiliary_BT={name: rows((text.auxiliary[name] for text in texts), -100) for name in texts[0].auxiliary},
    )


def _labels(text: Text) -> list[int]:
    """Its tokens, -100 for those that the loss does not count."""
    labels = [-100] * text.predict_from + text.tokens[text.predict_from :]
    for part in text.left_out:
        labels[part] = [-100] * len(labels[part])
    return labels


# --- steps -----------------------------------------------------------------------------------------------------------


class Progress:
    """The file that a pre-training goes on from, written every few minutes. `of` says which one it is."""

    def __init__(self, path: Path, *, of: str, every_seconds: float = 120.0) -> None:
        self._path, self._of, self._every, self._saved = path, of, every_seconds, time.monotonic()

    def restore(self, learner: Learner) -> tuple[int, int, list[dict[str, Any]]]:
        """The phase to go on with, its steps that are done, and the optimisers' states; zeros if there is no file.

        Raises ValueError for a file of another pre-training.
        """
        if not self._path.exists():
            return 0, 0, []
        state = torch.load(self._path, weights_only=True)
        if state["of"] != self._of:
            raise ValueError(f"{self._path} is of another pre-training: {state['of']}")
        learner.load_state_dict(state["learner"])
        return state["phase"], state["step"], state["optimizers"]

    def keep(self, learner: Learner, optimizers: Sequence[torch.optim.Optimizer], *, phase: int, step: int) -> None:
        """Write it, if it is time to."""
        if time.monotonic() - self._saved < self._every:
            return
        state = {
            "of": self._of,
            "phase": phase,
            "step": step,
            "learner": learner.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        part = self._path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self._path)
        self._saved = time.monotonic()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def train_phase(
    learner: Learner,
    batches: Iterator[Batch],
    phase: Phase,
    *,
    done: int = 0,
    states: Sequence[dict[str, Any]] = (),
    after_step: Callable[[Sequence[torch.optim.Optimizer], int], None] = lambda optimizers, step: None,
) -> float:
    """Steps at the phase's rates.

    The first `done` steps are behind it, and left the optimisers' `states`; `batches` go on from there. `after_step` is
    called with the steps that are done. Returns the mean loss of the last 50, in nats per token to predict.
    """
    optimizers = make_optimizers(learner, phase)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    for optimizer, state in zip(optimizers, states, strict=False):
        optimizer.load_state_dict(state)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = learner.trained()
    recent: list[float] = []
    started, tokens = time.monotonic(), 0
    for step in range(done, phase.steps):
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * phase.share_at(step)
        batch = next(batches)
        total, loss = learner.loss(batch)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += int((batch.document_BT >= 0).sum())
        recent = [*recent[-49:], loss]
        after_step(optimizers, step + 1)
        if (step + 1) % 100 == 0:
            mean, speed = sum(recent) / len(recent), tokens / (time.monotonic() - started)
            print(f"{phase.name} {step + 1}/{phase.steps} loss {mean:.3f} {speed:,.0f} tokens/s", flush=True)
    return sum(recent) / max(1, len(recent))


def make_optimizers(learner: Learner, phase: Phase) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon (Jordan et al. 2024) for the layers' matrices and AdamW for the rest."""
    trained = learner.trained()
    if phase.matrix_rate is not None:
        matrices = learner.matrices()
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in trained if id(parameter) not in chosen]
        muon = torch.optim.Muon(matrices, lr=phase.matrix_rate, weight_decay=phase.weight_decay)
        return [muon, torch.optim.AdamW(others, lr=phase.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    decayed, rest = [p for p in trained if p.dim() >= 2], [p for p in trained if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": phase.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=phase.rate, betas=(0.9, 0.95), fused=True)]
