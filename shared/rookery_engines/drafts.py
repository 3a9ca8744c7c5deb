"""Gold answers as drafts of a model's own greedy answers.

A gold answer is read with its prompt. This says how likely it is, and the tokens of the model's own answer for as
long as they are the gold's, and one more. What differs is written on, the rows of many batches together, since most
end after a token or two and a step of few rows costs hardly less than one of many. The few that go on often repeat
themselves or their prompt, so that what followed there before is their next draft: prompt lookup decoding (Saxena,
2023).

Shapes: B rows, C last tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch

from rookery_engines.adapted import BASE, AdaptedModel
from rookery_engines.decoding import Row, mean_scores, too_many_logits
from rookery_engines.reading import Read, joined, read_texts

MOST_WAITING = 1 << 14
"""Tokens of rows that wait to be written on, with their padding."""
CHEAP = 32
"""Tokens of a step that costs hardly more than one of a single token."""
ALIKE = 2
"""Last tokens of a text by which it is taken to repeat itself."""


class Drafts:
    """Answers of one call. Rows are greedy and held to nothing, and those of one adapter follow each other."""

    def __init__(
        self, model: AdaptedModel, *, pad: int, stop: frozenset[int], unwanted: Callable[[], bool] = lambda: False
    ) -> None:
        self._model, self._pad, self._stop, self._unwanted = model, pad, stop, unwanted
        self._rows: list[Row] = []
        self._read: list[Read] = []

    @property
    def adapters(self) -> set[str]:
        """Of the rows that wait: they have to stay loaded."""
        return {row.adapter for row in self._rows} - {BASE}

    @torch.inference_mode()
    def read(self, rows: Sequence[Row], golds: Sequence[list[int]]) -> list[float]:
        """The mean log-likelihood of each row's gold answer after its prompt, in nats; NaN where the gold is empty.

        Some of the rows may have to wait for their ends until `finish`. Nobody else may change them.
        """
        longest = max(map(len, golds))
        if len(rows) > 1 and too_many_logits(self._model, len(rows), longest):
            middle = len(rows) // 2
            return self.read(rows[:middle], golds[:middle]) + self.read(rows[middle:], golds[middle:])
        prompts, adapters = [row.prompt for row in rows], [row.adapter for row in rows]
        texts = [prompt + gold for prompt, gold in zip(prompts, golds, strict=True)]
        logits_BCV, read = read_texts(self._model, texts, prompts, adapters, pad=self._pad, last=longest + 1)
        read.forget(take_drafts(logits_BCV.argmax(-1).tolist(), rows, golds, self._stop))
        self._wait(rows, read)
        return mean_scores(logits_BCV, golds)

    def _wait(self, rows: Sequence[Row], read: Read) -> None:
        unfinished = [i for i, row in enumerate(rows) if not row.finished]
        if not unfinished:
            return
        read.keep(unfinished)
        width = max(one.mask_BT.shape[1] for one in (read, *self._read))
        if width * (len(self._rows) + len(unfinished)) > MOST_WAITING:
            self.finish()
        self._rows += [rows[i] for i in unfinished]
        self._read.append(read)

    @torch.inference_mode()
    def finish(self) -> None:
        """Write all rows to their ends, but for what is unwanted."""
        rows, reads, self._rows, self._read = self._rows, self._read, [], []
        if not rows:
            return
        read = joined(reads)
        while True:
            kept = [i for i, row in enumerate(rows) if not row.finished]
            if not kept or self._unwanted():
                return
            if len(kept) < len(rows):
                read.keep(kept)
                rows = [rows[i] for i in kept]
            drafts = [_draft(row, CHEAP // len(rows) - 1) for row in rows]
            tokens = [row.tokens[-1:] + draft for row, draft in zip(rows, drafts, strict=True)]
            logits_BCV = read.on(self._model, [row.adapter for row in rows], tokens)
            read.forget(take_drafts(logits_BCV.argmax(-1).tolist(), rows, drafts, self._stop))


def _draft(row: Row, most: int) -> list[int]:
    """For what a row says after its next token, which may be its last."""
    return repetition(row.prompt + row.tokens, min(most, row.sampling.max_new_tokens - len(row.tokens) - 1))


def repetition(text: Sequence[int], most: int) -> list[int]:
    """How a text goes on if it repeats what followed its last tokens when it last had them; nothing if it never had."""
    if most <= 0:
        return []
    last = [*text[-ALIKE:]]
    for period in range(1, len(text) - ALIKE + 1):
        if [*text[-ALIKE - period : -period]] == last:
            return [text[i % period - period] for i in range(most)]
    return []


def take_drafts(
    greedy_BC: Sequence[Sequence[int]], rows: Sequence[Row], drafts: Sequence[Sequence[int]], stop: frozenset[int]
) -> list[int]:
    """Each row takes what the model says before its draft and after each token of it, while they agree.

    Returns how many last tokens of each draft are none of the row's.
    """
    unread = []
    for greedy_C, row, draft in zip(greedy_BC, rows, drafts, strict=True):
        before = len(row.tokens)
        for token, drafted in zip_longest(greedy_C[len(greedy_C) - len(draft) - 1 :], draft):
            if row.finished:
                break
            row.take(token, stop)
            if token != drafted:
                break
        unread.append(len(draft) - max(len(row.tokens) - before - 1, 0))
    return unread
