"""Batched decoding of one causal model, with an adapter, a seed, temperature and top-p for every row.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from transformers import DynamicCache

from rookery_engines.adapted import BASE, AdaptedModel
from rookery_engines.constraints import Held
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
    if not active:
        return
    device = model.device
    prompts = [row.prompt for row in active]
    cache, shared = _read_shared(model, prompts, [row.adapter for row in active], most=min(map(len, prompts)) - 1)
    input_ids_BT, mask_BT, position_ids_BT = _left_padded(prompts, first=shared, pad=pad, device=device)
    draws = [row.draws() for row in active]
    while not unwanted():
        logits_BV = (
            model(
                [row.adapter for row in active],
                input_ids=input_ids_BT,
                attention_mask=mask_BT,
                position_ids=position_ids_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        _forbid(logits_BV, active)
        uniform_B = torch.tensor([draw[len(row.tokens)] for row, draw in zip(active, draws, strict=True)])
        chosen_B = choose(logits_BV, [row.sampling for row in active], uniform_B.to(device)).tolist()
        for row, token in zip(active, chosen_B, strict=True):
            row.take(token, stop)
        yield from (row for row in active if row.finished)
        kept = [i for i, row in enumerate(active) if not row.finished]
        if not kept:
            return
        if len(kept) < len(active):
            kept_B = torch.tensor(kept, device=device)
            cache.batch_select_indices(kept_B)
            mask_BT, position_ids_BT = mask_BT[kept_B], position_ids_BT[kept_B]
            active, draws = [active[i] for i in kept], [draws[i] for i in kept]
        input_ids_BT = torch.tensor([[row.tokens[-1]] for row in active], device=device)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones((len(active), 1))], dim=1)
        position_ids_BT = position_ids_BT[:, -1:] + 1


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
    if len(texts) > 1 and len(texts) * longest * model.model.config.vocab_size > MOST_LOGITS:
        halves = texts[: len(texts) // 2], texts[len(texts) // 2 :]
        return [score for half in halves for score in mean_log_likelihoods(model, half, pad=pad)]
    adapters, whole = [text.adapter for text in texts], [text.prompt + text.completion for text in texts]
    cache, shared = _read_shared(model, whole, adapters, most=min(len(text.prompt) for text in texts) - 1)
    input_ids_BT, mask_BT, position_ids_BT = _left_padded(whole, first=shared, pad=pad, device=model.device)
    logits_BCV = model(
        adapters,
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        position_ids=position_ids_BT,
        past_key_values=cache if shared else None,
        use_cache=shared > 0,
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    targets_BC1 = input_ids_BT[:, -longest:, None]
    scores_BC = logits_BCV.float().log_softmax(-1).gather(2, targets_BC1)[:, :, 0]
    return [
        float(scores_C[longest - len(text.completion) :].mean())
        for scores_C, text in zip(scores_BC, texts, strict=True)
    ]


def _read_shared(
    model: AdaptedModel, texts: Sequence[list[int]], adapters: Sequence[str], *, most: int
) -> tuple[DynamicCache, int]:
    """What the model makes of the tokens that all texts begin with, and how many these are, at most `most`.

    They are read once by each adapter.
    """
    cache, runs = DynamicCache(), [(name, len([*group])) for name, group in groupby(adapters)]
    shared = min(most, _alike(min(texts), max(texts)))
    if len(runs) == len(texts) or shared <= 0:
        return cache, 0
    input_ids_GT = torch.tensor([texts[0][:shared]] * len(runs), device=model.device)
    model([name for name, _ in runs], input_ids=input_ids_GT, past_key_values=cache, use_cache=True, logits_to_keep=1)
    run_of_text_B = [run for run, (_, members) in enumerate(runs) for _ in range(members)]
    cache.batch_select_indices(torch.tensor(run_of_text_B, device=model.device))
    return cache, shared


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _left_padded(
    texts: Sequence[Sequence[int]], *, first: int, pad: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens from the `first` on and their positions, each [B, T], and the mask [B, first + T], 1 before `first`."""
    width = max(len(text) for text in texts) - first
    input_ids_BT = torch.full((len(texts), width), pad)
    mask_BT = torch.ones((len(texts), first + width), dtype=torch.long)
    for i, text in enumerate(texts):
        padding = first + width - len(text)
        input_ids_BT[i, padding:] = torch.tensor(text[first:])
        mask_BT[i, first : first + padding] = 0
    position_ids_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, first:]
    return input_ids_BT.to(device), mask_BT.to(device), position_ids_BT.to(device)
