"""Fine-tune LoRA adapters over one frozen base, one at a time, with PEFT.

Owns the training loop: batches, loss, schedule, clipping, optimiser. It knows nothing of jobs, stores or services; the
student and the teacher's trainer both call it. Torch, transformers and peft are all that it needs.

Shapes: T tokens of all sequences in a batch, V vocabulary.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Schedule

IGNORED = -100
ADAPTER = "default"  # PEFT's name for an adapter that was given none


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence."""

    tokens: list[int]
    predict_from: int
    """Index of the first token that the loss counts, at least 1."""


@dataclass(slots=True, kw_only=True)
class TrainingRecord:
    """What happened while one adapter was trained."""

    losses: list[float] = field(default_factory=list)
    """Mean loss of each optimiser step, in nats per predicted token."""
    tokens: int = 0
    """Real tokens that went through the model, over all epochs."""
    truncated: int = 0
    """Sequences cut to the recipe's limit."""
    seconds: float = 0.0
    weight_change: float = 0.0
    """Frobenius norm of all scale * B @ A together, against the adapter that training started from zero."""


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[list[Tokens], int]:
    sequences, truncated = [], 0
    for example in examples:
        prompt = tokenizer.encode(example.prompt) if example.prompt else []
        tokens = prompt + tokenizer.encode(example.completion, add_special_tokens=not prompt)
        if example.end:
            tokens.append(int(tokenizer.eos_token_id))
        truncated += len(tokens) > max_tokens
        sequences.append(Tokens(tokens[:max_tokens], max(1, len(prompt))))
    return sequences, truncated


def pack(sequences: Sequence[Tokens], *, device: torch.device) -> dict[str, Tensor]:
    """One row with all sequences end to end and no padding.

    Positions start again at 0 with every sequence, which tells transformers' masks where each begins: none attends to
    another. Labels are the tokens themselves (the loss shifts) where one is to be predicted.
    """
    input_ids_1T = torch.tensor([[token for s in sequences for token in s.tokens]])
    position_ids_1T = torch.cat([torch.arange(len(s.tokens)) for s in sequences])[None]
    labels_1T = input_ids_1T.clone()
    labels_1T[position_ids_1T < torch.cat([torch.full((len(s.tokens),), s.predict_from) for s in sequences])] = IGNORED
    packed = {"input_ids": input_ids_1T, "position_ids": position_ids_1T, "labels": labels_1T}
    return {name: tensor.to(device) for name, tensor in packed.items()}


def schedule_scale(schedule: Schedule, *, step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate at `step` of `steps`, counted from 0; transformers' own formulas."""
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    match schedule:
        case Schedule.LINEAR:
            return max(0.0, 1.0 - progress)
        case Schedule.COSINE:
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case Schedule.CONSTANT:
            return 1.0


class LoraTrainer:
    """One frozen base model that lends itself to one adapter after another."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model.requires_grad_(False)
        self._model.train(mode=False)
        self._tokenizer = tokenizer

    def train(
        self,
        examples: Sequence[Example],
        recipe: LoraRecipe,
        *,
        seed: int,
        out: Path,
        start: Path | None = None,
        on_step: Callable[[int, int], None] = lambda step, steps: None,
    ) -> TrainingRecord:
        """Train one adapter and write it to `out` in PEFT's layout.

        `start` is a folder with an adapter of the same shape to go on from. `on_step(done, total)` is called before
        every optimiser step and may raise to stop. Raises ValueError when there is nothing to train on.
        """
        record = TrainingRecord()
        sequences, record.truncated = tokenize(examples, self._tokenizer, max_tokens=recipe.max_tokens)
        sequences = [s for s in sequences if len(s.tokens) > s.predict_from]
        if not sequences:
            raise ValueError("no example has a token to predict")
        started = time.perf_counter()
        with self._adapted(recipe, seed=seed, start=start) as adapted:
            self._optimise(adapted, sequences, recipe, seed=seed, record=record, on_step=on_step)
            record.weight_change = _weight_change(adapted)
            adapted.save_pretrained(str(out), save_embedding_layers=False)
            _sort_config(out / "adapter_config.json")
        record.seconds = time.perf_counter() - started
        return record

    @contextmanager
    def _adapted(self, recipe: LoraRecipe, *, seed: int, start: Path | None) -> Iterator[PeftModel]:
        """The base with fresh LoRA layers, which are taken out again afterwards."""
        targets = ALL_LINEAR if recipe.targets == (ALL_LINEAR,) else list(recipe.targets)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)
        adapted = get_peft_model(self._model, config)
        try:
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            if start is not None:
                set_peft_model_state_dict(adapted, load_file(start / "adapter_model.safetensors"))
            adapted.train()
            yield adapted
        finally:
            adapted.unload()
            self._model.train(mode=False)

    def _optimise(
        self,
        adapted: PeftModel,
        sequences: Sequence[Tokens],
        recipe: LoraRecipe,
        *,
        seed: int,
        record: TrainingRecord,
        on_step: Callable[[int, int], None],
    ) -> None:
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        size = recipe.batch_size or len(sequences)
        batches = math.ceil(len(sequences) / size)
        per_epoch = math.ceil(batches / recipe.gradient_accumulation)
        steps = per_epoch * recipe.epochs
        order = torch.Generator().manual_seed(seed)
        step = 0
        for _ in range(recipe.epochs):
            shuffled = [sequences[i] for i in torch.randperm(len(sequences), generator=order).tolist()]
            grouped = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
            for first in range(0, batches, recipe.gradient_accumulation):
                on_step(step, steps)
                scale = schedule_scale(recipe.schedule, step=step, steps=steps, warmup=recipe.warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * scale
                micro = grouped[first : first + recipe.gradient_accumulation]
                record.losses.append(self._accumulate(adapted, micro, record))
                if recipe.max_gradient_norm:
                    torch.nn.utils.clip_grad_norm_(weights, recipe.max_gradient_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1

    def _accumulate(self, adapted: PeftModel, micro: Sequence[Sequence[Tokens]], record: TrainingRecord) -> float:
        """Gradients of the mean loss per predicted token over all micro-batches of a step."""
        predicted = sum(len(s.tokens) - s.predict_from for sequences in micro for s in sequences)
        total = 0.0
        for sequences in micro:
            packed = pack(sequences, device=self._model.device)
            labels_1T = packed.pop("labels")
            logits_1TV = adapted(**packed, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits_1TV[0, :-1].float(),
                labels_1T[0, 1:],
                ignore_index=IGNORED,
                reduction="sum",
            )
            torch.autograd.backward(loss / predicted)
            total += loss.item()
            record.tokens += sum(len(s.tokens) for s in sequences)
        return total / predicted


def _sort_config(path: Path) -> None:
    """PEFT writes sets in the order of the day; the same training must give the same bytes."""
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


@torch.no_grad()
def _weight_change(adapted: PeftModel) -> float:
    squares = 0.0
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.scaling:
            a_RI, b_OR = _weight(module.lora_A), _weight(module.lora_B)
            # |BA|^2 = trace(A A^T B^T B), without forming the product
            squares += ((a_RI @ a_RI.T) * (b_OR.T @ b_OR)).sum().item() * module.scaling[ADAPTER] ** 2
    return math.sqrt(squares)


def _weight(factors: torch.nn.ModuleDict) -> Tensor:
    factor = factors[ADAPTER]
    assert isinstance(factor, torch.nn.Linear)
    return factor.weight
