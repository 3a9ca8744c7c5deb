"""Scoring without Rookery: transformers and PEFT, one adapter at a time.

Each adapter is loaded, asked its questions, judged and unloaded, as SEAL's code does with its own. The base answers the
same questions, with the adapter switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rookery_engines.models import pad_token

Answer = tuple[str, float]
"""A text, and the mean log-likelihood of the gold answer."""


class PeftScoring:
    """`at_once` questions in a batch."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, at_once: int) -> None:
        self._model, self._tokenizer, self._at_once = model, tokenizer, at_once
        self._pad = pad_token(tokenizer)

    @torch.inference_mode()
    def score(
        self, folder: Path, questions: Sequence[tuple[str, str]], *, max_new_tokens: int
    ) -> tuple[list[Answer], list[Answer]]:
        """Prompts with gold answers, answered without the adapter and with it."""
        adapted = PeftModel.from_pretrained(self._model, str(folder))
        answers = []
        for mode in (adapted.disable_adapter(), nullcontext()):
            with mode:
                answers.append(
                    [
                        answer
                        for first in range(0, len(questions), self._at_once)
                        for answer in self._ask(adapted, questions[first : first + self._at_once], max_new_tokens)
                    ]
                )
        self._model = adapted.unload()
        before, after = answers
        return before, after

    def _ask(self, model: PeftModel, questions: Sequence[tuple[str, str]], max_new_tokens: int) -> list[Answer]:
        prompts = [self._encode(prompt) for prompt, _ in questions]
        tokens_BT, mask_BT = self._padded(prompts)
        written_BT = model.generate(  # type: ignore[no-untyped-call]  # PEFT
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self._pad,
        )[:, tokens_BT.shape[1] :]
        texts = self._tokenizer.batch_decode(written_BT, skip_special_tokens=True)
        golds = [self._encode(gold) for _, gold in questions]
        whole_BT, whole_mask_BT = self._padded([torch.cat(pair) for pair in zip(prompts, golds, strict=True)])
        scores_BTV = model(input_ids=whole_BT, attention_mask=whole_mask_BT).logits.log_softmax(-1)
        answers = []
        for text, gold, scores_TV in zip(texts, golds, scores_BTV, strict=True):
            scores = scores_TV[-len(gold) - 1 : -1].gather(1, gold[:, None])
            answers.append((text.strip(), float(scores.mean())))
        return answers

    def _encode(self, text: str) -> torch.Tensor:
        return torch.tensor(self._tokenizer.encode(text, add_special_tokens=False))

    def _padded(self, texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and their mask, padded on the left, each [B, T]."""
        tokens_BT = pad_sequence([*texts], batch_first=True, padding_value=self._pad, padding_side="left")
        mask_BT = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")
        return tokens_BT, mask_BT
