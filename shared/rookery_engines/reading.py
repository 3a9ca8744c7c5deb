"""Reading a batch of texts with one causal model: what texts of an adapter begin with is read once.

Shapes: B texts, T tokens, G groups of texts that begin alike, C last tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad as padded
from transformers import DynamicCache

from rookery_engines.adapted import AdaptedModel
from rookery_engines.encoding import alike

PAD = 0
"""A token in the place of none, which is masked."""


@dataclass(slots=True, kw_only=True)
class Read:
    """What a model has read of a batch."""

    cache: DynamicCache
    mask_BT: Tensor
    """1 at what belongs to a text."""

    def forget(self, tokens: Sequence[int]) -> None:
        """So many last tokens of each text."""
        if any(tokens):
            first_B1 = self.mask_BT.shape[1] - torch.tensor(tokens, device=self.mask_BT.device)[:, None]
            columns_T = torch.arange(self.mask_BT.shape[1], device=self.mask_BT.device)
            self.mask_BT = self.mask_BT * (columns_T < first_B1)

    def keep(self, places: Sequence[int]) -> None:
        """These texts alone."""
        kept_B = torch.tensor(places, device=self.mask_BT.device)
        self.cache.batch_select_indices(kept_B)
        self.mask_BT = self.mask_BT[kept_B]

    def on(self, model: AdaptedModel, adapters: Sequence[str], tokens: Sequence[Sequence[int]]) -> Tensor:
        """[B, C, V] Logits after each text's next tokens, the most of which are C."""
        input_ids_BC, more_BC = _left_padded(tokens, pad=PAD, device=self.mask_BT.device)
        self.mask_BT = torch.cat([self.mask_BT, more_BC], dim=1)
        logits_BCV: Tensor = model(
            adapters,
            input_ids=input_ids_BC,
            attention_mask=self.mask_BT,
            position_ids=(self.mask_BT.cumsum(-1) - 1)[:, -input_ids_BC.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits_BCV


def joined(reads: Sequence[Read]) -> Read:
    """All texts of some batches as one batch."""
    if len(reads) == 1:
        return reads[0]
    width = max(read.mask_BT.shape[1] for read in reads)
    missing = [width - read.mask_BT.shape[1] for read in reads]
    cache = DynamicCache()
    for layer, own in enumerate(zip(*(read.cache.layers for read in reads), strict=True)):
        keys = [padded(one.keys, (0, 0, left, 0)) for one, left in zip(own, missing, strict=True)]
        values = [padded(one.values, (0, 0, left, 0)) for one, left in zip(own, missing, strict=True)]
        cache.update(torch.cat(keys), torch.cat(values), layer)
    masks = [padded(read.mask_BT, (left, 0)) for read, left in zip(reads, missing, strict=True)]
    return Read(cache=cache, mask_BT=torch.cat(masks))


def read_texts(
    model: AdaptedModel,
    texts: Sequence[list[int]],
    prompts: Sequence[list[int]],
    adapters: Sequence[str],
    *,
    pad: int,
    last: int,
    more: bool = True,
) -> tuple[Tensor, Read]:
    """[B, C, V] Logits after each text's `last` tokens, and what it takes to read on, if `more` is to be read.

    Texts begin with their `prompts`, and of these all but the last token may be read together with others'. Texts of
    one adapter stand together. What is before a text has logits as well, which mean nothing.
    """
    device, cache = model.device, DynamicCache()
    head_BT, starts = _read_heads(model, cache, prompts, adapters, pad=pad)
    rest = [text[start:] for text, start in zip(texts, starts, strict=True)]
    input_ids_BT, rest_BT = _left_padded(rest, pad=pad, device=device)
    mask_BT = torch.cat([head_BT, rest_BT], dim=1)
    position_ids_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, head_BT.shape[1] :]
    caching = more or head_BT.shape[1] > 0
    logits_BCV: Tensor = model(
        adapters,
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        position_ids=position_ids_BT,
        past_key_values=cache if caching else None,
        use_cache=caching,
        logits_to_keep=last,
    ).logits
    return logits_BCV, Read(cache=cache, mask_BT=mask_BT)


def _read_heads(
    model: AdaptedModel,
    cache: DynamicCache,
    prompts: Sequence[list[int]],
    adapters: Sequence[str],
    *,
    pad: int,
) -> tuple[Tensor, list[int]]:
    """Read into the cache what prompts of an adapter begin with, once for all that share it.

    Returns what of the cache belongs to each text, [B, T], and how many of its tokens that is.
    """
    heads = groups_of(prompts, adapters)
    widest = max((tokens for texts, tokens in heads if texts > 1), default=0)
    if not widest or min(map(len, prompts)) == 1:
        return torch.ones((len(prompts), 0), dtype=torch.long, device=model.device), [0] * len(prompts)
    first: list[list[int]] = []
    names: list[str] = []
    starts: list[int] = []
    group_of_text: list[int] = []
    for group, (texts, tokens) in enumerate(heads):
        at = len(starts)
        start = tokens if texts > 1 else min(widest, len(prompts[at]) - 1)
        first.append(prompts[at][:start])
        names.append(adapters[at])
        starts += [start] * texts
        group_of_text += [group] * texts
    input_ids_GT, mask_GT = _left_padded(first, pad=pad, device=model.device)
    model(
        names,
        input_ids=input_ids_GT,
        attention_mask=mask_GT,
        position_ids=(mask_GT.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    group_of_text_B = torch.tensor(group_of_text, device=model.device)
    cache.batch_select_indices(group_of_text_B)
    return mask_GT[group_of_text_B], starts


def groups_of(prompts: Sequence[list[int]], adapters: Sequence[str]) -> list[tuple[int, int]]:
    """Groups of neighbours of one adapter: how many texts, and how many first tokens they share.

    Those that save most reading. The last token of a prompt counts as not shared.
    """
    groups: list[tuple[int, int]] = []
    at = 0
    for _, members in groupby(adapters):
        texts = [prompt[:-1] for prompt in prompts[at : at + len([*members])]]
        common = [alike(one, other) for one, other in pairwise(texts)]
        groups += _divided(common)
        at += len(texts)
    return groups


def _divided(common: Sequence[int]) -> list[tuple[int, int]]:
    """The best groups of texts of which each shares so many tokens with the next: all, or apart where they share least.

    As `groups_of` returns them.
    """
    if not common:
        return [(1, 0)]
    least = min(common)
    whole = [(len(common) + 1, least)]
    if least == max(common):
        return whole if least else [(1, 0)] * (len(common) + 1)
    at = common.index(least)
    parts = _divided(common[:at]) + _divided(common[at + 1 :])
    return max(whole, parts, key=lambda groups: sum((texts - 1) * tokens for texts, tokens in groups))


def _left_padded(texts: Sequence[Sequence[int]], *, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and the mask of what is no padding, each [B, T]."""
    width = max(map(len, texts))
    input_ids_BT = torch.tensor([[pad] * (width - len(text)) + [*text] for text in texts])
    mask_BT = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return input_ids_BT.to(device), mask_BT.to(device)
