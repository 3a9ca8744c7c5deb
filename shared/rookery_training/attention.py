"""Causal attention within each of many packed sequences, as an attention implementation of transformers.

transformers hands every attention layer's queries, keys and values to the function registered here, with the `Buckets`
of the sequences that the model was called with. Sliding windows and capped scores (Mistral, Gemma) are honoured.

Shapes: H query heads, K key heads, T tokens, S sequences, L tokens of the longest, D dimensions of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rookery_training.packing import Buckets

NAME = "rookery_packed"


def packed_attention(
    _module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    _mask: None,
    *,
    packed_sequences: Buckets,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Returns [1, T, H, D], as transformers wants it."""
    q, k, v = (packed_sequences.pad(x[0].transpose(0, 1)) for x in (query_1HTD, key_1KTD, value_1KTD))
    attended = [
        _attend(*(x.transpose(1, 2) for x in block), scaling=scaling, window=sliding_window, softcap=softcap)
        for block in zip(q, k, v, strict=True)
    ]
    return packed_sequences.unpad([o_SHLD.transpose(1, 2) for o_SHLD in attended])[None], None


def _attend(
    q_SHLD: Tensor, k_SKLD: Tensor, v_SKLD: Tensor, *, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention in one block [S, H, L, D]."""
    width, shared = q_SHLD.shape[2], q_SHLD.shape[1] != k_SKLD.shape[1]
    if window is not None and window >= width:
        window = None
    if softcap is None and window is None:
        return scaled_dot_product_attention(q_SHLD, k_SKLD, v_SKLD, is_causal=True, scale=scaling, enable_gqa=shared)
    mask_LL = _visible(width, window, q_SHLD.device)
    if softcap is None:
        return scaled_dot_product_attention(q_SHLD, k_SKLD, v_SKLD, mask_LL, scale=scaling, enable_gqa=shared)
    return _capped(q_SHLD, k_SKLD, v_SKLD, mask_LL, scaling=scaling, softcap=softcap)


def _visible(width: int, window: int | None, device: torch.device) -> Tensor:
    """True where a query may look: not at the future, and not further back than the window."""
    positions_L = torch.arange(width, device=device)
    back_LL = positions_L[:, None] - positions_L
    seen_LL: Tensor = back_LL >= 0
    return seen_LL if window is None else seen_LL & (back_LL < window)


def _capped(
    q_SHLD: Tensor, k_SKLD: Tensor, v_SKLD: Tensor, mask_LL: Tensor, *, scaling: float | None, softcap: float
) -> Tensor:
    groups = q_SHLD.shape[1] // k_SKLD.shape[1]
    k_SHLD, v_SHLD = (x.repeat_interleave(groups, dim=1) for x in (k_SKLD, v_SKLD))
    scale = q_SHLD.shape[-1] ** -0.5 if scaling is None else scaling
    scores_SHLL = torch.tanh(q_SHLD @ k_SHLD.transpose(2, 3) * (scale / softcap)) * softcap
    weights_SHLL = scores_SHLL.masked_fill(~mask_LL, float("-inf")).softmax(
        -1, dtype=torch.promote_types(scores_SHLL.dtype, torch.float32)
    )
    return weights_SHLL.to(v_SHLD.dtype) @ v_SHLD


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # every sequence's mask is its block's
