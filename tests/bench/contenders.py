"""What ours is compared with: LoRA adapters with transformers and PEFT, one after the other.

Shapes: T tokens of all sequences in a batch, V vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Protocol

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_shared.types import LoraRecipe
from rookery_training.batch import AdapterTask, BatchTrainer
from rookery_training.schedules import schedule_scale
from rookery_training.sequences import Tokens, count_steps, micro_batches, tokenize
from tests.adapters import with_adapter

IGNORED = -100


class Contender(Protocol):
    def train(self, tasks: Sequence[AdapterTask]) -> tuple[int, float]:
        """Train the adapters and write them. Returns the real tokens of all, and the mean of their last losses."""


class Ours:
    """`slots` adapters at once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, slots: int) -> None:
        self.trainer = BatchTrainer(model, tokenizer, slots=slots)

    def train(self, tasks: Sequence[AdapterTask]) -> tuple[int, float]:
        outcomes = {outcome.key: outcome for outcome in self.trainer.train(tasks)}
        broken = [outcome.failure for outcome in outcomes.values() if outcome.failure]
        if broken:
            raise RuntimeError(f"{len(broken)} adapters failed: {broken[0]}")
        records = [outcomes[task.key].record for task in tasks]
        last = [_last_epoch(record.losses, task.recipe) for record, task in zip(records, tasks, strict=True)]
        return sum(record.tokens for record in records), sum(last) / len(last)


class Sequential:
    """PEFT without padding, in the plainest loop: what a careful user would write, and less work than a Trainer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, threads: int = 0) -> None:
        self._model, self._tokenizer = model.requires_grad_(False), tokenizer
        self._threads = threads or torch.get_num_threads()

    def train(self, tasks: Sequence[AdapterTask]) -> tuple[int, float]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            trained = [self._one(task) for task in tasks]
        finally:
            torch.set_num_threads(before)
        return sum(tokens for tokens, _ in trained), sum(loss for _, loss in trained) / len(trained)

    def _one(self, task: AdapterTask) -> tuple[int, float]:
        recipe, device = task.recipe, self._model.device
        sequences, _ = tokenize(task.examples, self._tokenizer, recipe)
        steps, seen = count_steps(len(sequences), recipe), 0
        adapted = with_adapter(self._model, recipe, seed=task.seed)
        adapted.train()
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        losses = []
        for batch in micro_batches(sequences, recipe, seed=task.seed):
            scale = schedule_scale(recipe.schedule, step=batch.step, steps=steps, warmup=recipe.warmup_steps)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * scale
            row = {name: tensor.to(device) for name, tensor in end_to_end(batch.sequences).items()}
            labels_1T = row.pop("labels")
            logits_1TV = adapted(**row, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits_1TV[0, :-1].float(), labels_1T[0, 1:], ignore_index=IGNORED, reduction="sum"
            )
            torch.autograd.backward(loss / batch.counted)
            losses.append(loss.detach() / batch.counted)
            seen += labels_1T.numel()
            if batch.ends_step:
                torch.nn.utils.clip_grad_norm_(weights, recipe.max_gradient_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        adapted.save_pretrained(str(task.out), save_embedding_layers=False)
        adapted.unload()
        return seen, _last_epoch([loss.item() for loss in losses], recipe)


class PaddedSequential:
    """transformers' Trainer and PEFT as SEAL's code uses them: every sequence padded, labels on the padding."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, padding: int = 2048) -> None:
        self._model, self._tokenizer, self._padding = model.requires_grad_(False), tokenizer, padding

    def train(self, tasks: Sequence[AdapterTask]) -> tuple[int, float]:
        trained = [self._one(task) for task in tasks]
        return sum(tokens for tokens, _ in trained), sum(loss for _, loss in trained) / len(trained)

    def _one(self, task: AdapterTask) -> tuple[int, float]:
        recipe = task.recipe
        sequences, _ = tokenize(task.examples, self._tokenizer, recipe)
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                use_cpu=self._model.device.type == "cpu",
                bf16=self._model.dtype is torch.bfloat16,
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=recipe.batch_size,
                learning_rate=recipe.learning_rate,
                seed=task.seed,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
            )
            adapted = with_adapter(self._model, recipe, seed=task.seed)
            rows = [self._row(sequence) for sequence in sequences]
            trainer = transformers.Trainer(model=adapted, args=arguments, train_dataset=rows)
            result = trainer.train()
        adapted.save_pretrained(str(task.out), save_embedding_layers=False)
        adapted.unload()
        return sum(len(s.tokens) for s in sequences) * recipe.epochs, result.training_loss

    def _row(self, sequence: Tokens) -> dict[str, list[int]]:
        pads = self._padding - len(sequence.tokens)
        ids = sequence.tokens + [int(self._tokenizer.eos_token_id)] * pads
        return {"input_ids": ids, "attention_mask": [1] * len(sequence.tokens) + [0] * pads, "labels": ids}


def _last_epoch(losses: Sequence[float], recipe: LoraRecipe) -> float:
    """Mean over the steps of the last epoch."""
    steps = len(losses) // recipe.epochs
    return sum(losses[-steps:]) / steps


def end_to_end(sequences: Sequence[Tokens]) -> dict[str, Tensor]:
    """One row with all sequences end to end; positions that start again tell transformers where each begins."""
    input_ids_1T = torch.tensor([[token for s in sequences for token in s.tokens]])
    position_ids_1T = torch.cat([torch.arange(len(s.tokens)) for s in sequences])[None]
    first_T = torch.cat([torch.full((len(s.tokens),), s.predict_from) for s in sequences])
    labels_1T = input_ids_1T.masked_fill(position_ids_1T < first_T, IGNORED)
    return {"input_ids": input_ids_1T, "position_ids": position_ids_1T, "labels": labels_1T}
