"""Batched decoding of one causal model, with an adapter, a seed, temperature and top-p for every row.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rookery_engines.adapted import BASE, AdaptedModel
from rookery_engines.constraints import Held
from rookery_engines.reading import read_texts
from rookery_shared.types import Sampling

MOST_LOGITS = 1 << 28
"""At a time: 1 GiB of float32."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One text on its way."""

    index: int
    prompt: list[int]
    sampling: Sampling
    seed: int
    adapter: str = BASE
    """Its name."""
    held: Held | None = None
    """What it is held to."""
    tokens: list[int] = field(default_factory=list)
    stopped: bool = False
    """The model closed the text; the closing token is not in `tokens`."""

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.tokens) >= self.sampling.max_new_tokens

    def take(self, token: int, stop: frozenset[int]) -> None:
        if token in stop:
            self.stopped = True
            return
        self.tokens.append(token)
        if self.held is not None:
            self.held.take(token)

    def draws(self) -> Tensor:
        """One uniform number a token, from the row's own seed: the row's text does not depend on its neighbours."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.sampling.max_new_tokens, generator=generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A completion to be judged."""

    prompt: list[int]
    completion: list[int]
    adapter: str = BASE


@torch.inference_mode()
def decode(
    model: AdaptedModel,
    rows: Sequence[Row],
    *,
    pad: int,
    stop: frozenset[int],
    unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[Row]:
    """Yield each row when it is finished. The batch shrinks as rows finish, and ends when it is `unwanted`."""
    active = [row for row in rows if not row.finished]
    yield from (row for row in rows if row.finished)
    if not active or unwanted():
        return
    prompts = [row.prompt for row in active]
    logits_BCV, read = read_texts(model, prompts, prompts, [row.adapter for row in active], pad=pad, last=1)
    draws = [row.draws() for row in active]
    _take(logits_BCV[:, -1].float(), active, draws, stop)
    while True:
        yield from (row for row in active if row.finished)
        kept = [i for i, row in enumerate(active) if not row.finished]
        if not kept or unwanted():
            return
        if len(kept) < len(active):
            read.keep(kept)
            active, draws = [active[i] for i in kept], [draws[i] for i in kept]
        logits_BCV = read.on(model, [row.adapter for row in active], [row.tokens[-1:] for row in active])
        _take(logits_BCV[:, -1].float(), active, draws, stop)


def _take(logits_BV: Tensor, rows: Sequence[Row], draws: Sequence[Tensor], stop: frozenset[int]) -> None:
    """Each row takes its next token."""
    _forbid(logits_BV, rows)
    uniform_B = torch.tensor([draw[len(row.tokens)] for row, draw in zip(rows, draws, strict=True)])
    chosen_B = choose(logits_BV, [row.sampling for row in rows], uniform_B.to(logits_BV.device)).tolist()
    for row, token in zip(rows, chosen_B, strict=True):
        row.take(token, stop)


def _forbid(logits_BV: Tensor, rows: Sequence[Row]) -> None:
    """Tokens with which a row would break what it is held to."""
    for logits_V, row in zip(logits_BV, rows, strict=True):
        if row.held is not None:
            logits_V.masked_fill_(~row.held.allowed_V().to(logits_V.device), float("-inf"))


def choose(logits_BV: Tensor, sampling: Sequence[Sampling], uniform_B: Tensor) -> Tensor:
    """One token a row: the most likely at temperature 0, else by inverting the nucleus's cumulative distribution."""
    greedy_B = logits_BV.argmax(-1)
    if all(s.temperature == 0 for s in sampling):
        return greedy_B
    temperature_B = logits_BV.new_tensor([s.temperature or 1.0 for s in sampling])
    top_p_B1 = logits_BV.new_tensor([[s.top_p] for s in sampling])
    sorted_BV, order_BV = (logits_BV / temperature_B[:, None]).softmax(-1).sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    nucleus_BV = sorted_BV.masked_fill(before_BV >= top_p_B1, 0.0)
    cumulative_BV = nucleus_BV.cumsum(-1)
    target_B1 = (uniform_B[:, None] * cumulative_BV[:, -1:]).contiguous()
    picked_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp(max=logits_BV.shape[-1] - 1)
    sampled_B = order_BV.gather(1, picked_B1)[:, 0]
    sampled = torch.tensor([s.temperature > 0 for s in sampling], device=logits_BV.device)
    return torch.where(sampled, sampled_B, greedy_B)


@torch.inference_mode()
def mean_log_likelihoods(model: AdaptedModel, texts: Sequence[Text], *, pad: int) -> list[float]:
    """The mean log-likelihood of each completion's tokens, in nats.

    Logits are made for completions only, and of long ones for some texts at a time.
    """
    longest = max(len(text.completion) for text in texts)
    if len(texts) > 1 and too_many_logits(model, len(texts), longest):
        halves = texts[: len(texts) // 2], texts[len(texts) // 2 :]
        return [score for half in halves for score in mean_log_likelihoods(model, half, pad=pad)]
    whole, prompts = [text.prompt + text.completion for text in texts], [text.prompt for text in texts]
    logits_BCV, _ = read_texts(
        model, whole, prompts, [text.adapter for text in texts], pad=pad, last=longest + 1, more=False
    )
    return mean_scores(logits_BCV, [text.completion for text in texts])


def too_many_logits(model: AdaptedModel, rows: int, longest: int) -> bool:
    """For one pass over so many texts, of which so many tokens at most are judged."""
    return bool(rows * longest * model.model.config.vocab_size > MOST_LOGITS)


def mean_scores(logits_BCV: Tensor, completions: Sequence[list[int]]) -> list[float]:
    """Of completions of fewer than C tokens, which the last logits but one are about; NaN for one without any."""
    longest = logits_BCV.shape[1] - 1
    targets_BC1 = torch.zeros((len(completions), longest, 1), dtype=torch.long)
    for targets_C1, completion in zip(targets_BC1, completions, strict=True):
        targets_C1[longest - len(completion) :, 0] = torch.tensor(completion, dtype=torch.long)
    scores_BCV = logits_BCV[:, :-1].float().log_softmax(-1)
    scores_BC = scores_BCV.gather(2, targets_BC1.to(logits_BCV.device))[:, :, 0].cpu()
    return [
        float(scores_C[longest - len(completion) :].mean())
        for scores_C, completion in zip(scores_BC, completions, strict=True)
    ]
