"""The contender: LoRA adapters with PEFT, one after the other, without padding, as a careful user would train them.

Shapes: T tokens of all sequences in a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_training.batch import AdapterTask
from rookery_training.schedules import schedule_scale
from rookery_training.sequences import Tokens, count_steps, micro_batches, tokenize

IGNORED = -100


class PeftLoop:
    """One base model that lends itself to one adapter after another."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model.requires_grad_(False)
        self._tokenizer = tokenizer

    def train(self, task: AdapterTask) -> int:
        """Train one adapter and write it. Returns the tokens that it saw."""
        recipe = task.recipe
        sequences, _ = tokenize(task.examples, self._tokenizer, recipe)
        steps, seen = count_steps(len(sequences), recipe), 0
        torch.manual_seed(task.seed)
        config = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets), task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(self._model, config)
        adapted.train()
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        for batch in micro_batches(sequences, recipe, seed=task.seed):
            scale = schedule_scale(recipe.schedule, step=batch.step, steps=steps, warmup=recipe.warmup_steps)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * scale
            packed = pack(batch.sequences)
            labels_1T = packed.pop("labels")
            logits_1TV = adapted(**packed, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits_1TV[0, :-1].float(), labels_1T[0, 1:], ignore_index=IGNORED, reduction="sum"
            )
            torch.autograd.backward(loss / batch.counted)
            seen += labels_1T.numel()
            if batch.ends_step:
                torch.nn.utils.clip_grad_norm_(weights, recipe.max_gradient_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        adapted.save_pretrained(str(task.out), save_embedding_layers=False)
        adapted.unload()
        return seen


def pack(sequences: Sequence[Tokens]) -> dict[str, Tensor]:
    """One row with all sequences end to end; positions that start again tell transformers where each begins."""
    input_ids_1T = torch.tensor([[token for s in sequences for token in s.tokens]])
    position_ids_1T = torch.cat([torch.arange(len(s.tokens)) for s in sequences])[None]
    first_T = torch.cat([torch.full((len(s.tokens),), s.predict_from) for s in sequences])
    labels_1T = input_ids_1T.masked_fill(position_ids_1T < first_T, IGNORED)
    return {"input_ids": input_ids_1T, "position_ids": position_ids_1T, "labels": labels_1T}
