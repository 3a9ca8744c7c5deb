"""Causal attention within each of many packed sequences, as an attention implementation of transformers.

transformers hands every attention layer's queries, keys and values to the function registered here, with the `Buckets`
of the sequences that the model was called with. Sliding windows and capped scores (Mistral, Gemma) are honoured.

Three ways: on a GPU in 16 bits, torch's variable-length kernel on the row as it is; for short sequences on CPU, plain
products on padded blocks; for everything else, torch's fused kernels on padded blocks.

Shapes: H query heads, K key heads, T tokens, S sequences, L tokens of the longest, D dimensions of a head.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rookery_training.packing import Block, Buckets

HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
"""Whether this torch has the variable-length kernel, with all that is asked of it."""
if HAS_VARLEN:
    from torch.nn.attention.varlen import varlen_attn

    HAS_VARLEN = {*inspect.signature(varlen_attn).parameters} >= {"scale", "window_size", "enable_gqa"}

NAME = "rookery_packed"
PLAIN_ON_CPU = 192
"""Up to this length plain products are faster on CPU than the fused kernels: measured 1.5 times in float32 and 5 times
in bfloat16 at 60 tokens, and as fast at 250."""


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
    q_HTD, k_KTD, v_KTD = query_1HTD[0], key_1KTD[0], value_1KTD[0]
    all_heard = all(block.silent_GL is None for block in packed_sequences.blocks)
    if HAS_VARLEN and softcap is None and all_heard and q_HTD.is_cuda and q_HTD.dtype.itemsize == 2:
        return _varlen(q_HTD, k_KTD, v_KTD, packed_sequences, scaling=scaling, window=sliding_window)[None], None
    q, k, v = (_Pad.apply(x, packed_sequences) for x in (q_HTD, k_KTD, v_KTD))  # type: ignore[no-untyped-call]
    attended = [
        _attend(*block, scaling=scaling, window=sliding_window, softcap=softcap)
        for block in zip(q, k, v, packed_sequences.blocks, strict=True)
    ]
    o_HTD: Tensor = _Unpad.apply(packed_sequences, *attended)  # type: ignore[no-untyped-call]
    return o_HTD.transpose(0, 1)[None], None


class _Pad(torch.autograd.Function):
    """Rows as blocks. Nothing flows back from padding: no row looks at it, and what it makes itself is thrown away."""

    @staticmethod
    def forward(ctx: Any, rows_HTD: Tensor, sequences: Buckets) -> tuple[Tensor, ...]:
        ctx.sequences = sequences
        return tuple(sequences.pad(rows_HTD, dim=1))

    @staticmethod
    def backward(ctx: Any, *gradients_HSLD: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.sequences.unpad(gradients_HSLD, dim=1), None


class _Unpad(torch.autograd.Function):
    """Blocks as rows."""

    @staticmethod
    def forward(ctx: Any, sequences: Buckets, *blocks_HSLD: Tensor) -> Tensor:
        ctx.sequences = sequences
        return sequences.unpad(blocks_HSLD, dim=1)

    @staticmethod
    def backward(ctx: Any, gradient_HTD: Tensor) -> tuple[Tensor | None, ...]:
        blocks = zip(ctx.sequences.pad(gradient_HTD, dim=1), ctx.sequences.blocks, strict=True)
        return None, *(gradient_HSLD.mul_(block.real_GL[:, :, None]) for gradient_HSLD, block in blocks)


def _varlen(
    q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, sequences: Buckets, *, scaling: float | None, window: int | None
) -> Tensor:
    """[T, H, D]"""
    longest = max(sequences.lengths)
    attended_THD = varlen_attn(
        q_HTD.transpose(0, 1),
        k_KTD.transpose(0, 1),
        v_KTD.transpose(0, 1),
        sequences.bounds,
        sequences.bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q_HTD.shape[0] != k_KTD.shape[0],
    )
    assert isinstance(attended_THD, Tensor)
    return attended_THD


def _attend(
    q_HSLD: Tensor,
    k_KSLD: Tensor,
    v_KSLD: Tensor,
    block: Block,
    *,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention in one block [H, S, L, D]."""
    width = q_HSLD.shape[2]
    if window is not None and window >= width:
        window = None
    if softcap is not None or (q_HSLD.device.type == "cpu" and width <= PLAIN_ON_CPU):
        hidden_SLL = _hidden(width, window, block.silent_GL, q_HSLD.device)
        return _plain(q_HSLD, k_KSLD, v_KSLD, hidden_SLL, scaling=scaling, softcap=softcap)
    causal = window is None and block.silent_GL is None
    attended_SHLD = scaled_dot_product_attention(
        q_HSLD.transpose(0, 1),
        k_KSLD.transpose(0, 1),
        v_KSLD.transpose(0, 1),
        attn_mask=None if causal else ~_hidden(width, window, block.silent_GL, q_HSLD.device)[:, None],
        is_causal=causal,
        scale=scaling,
        enable_gqa=q_HSLD.shape[0] != k_KSLD.shape[0],
    )
    return attended_SHLD.transpose(0, 1)


def _hidden(width: int, window: int | None, silent_SL: Tensor | None, device: torch.device) -> Tensor:
    """[S or 1, L, L] True where a query may not look: the future, further back than the window, what is silent."""
    positions_L = torch.arange(width, device=device)
    back_LL = positions_L[:, None] - positions_L
    hidden_1LL = (back_LL < 0)[None] if window is None else ((back_LL < 0) | (back_LL >= window))[None]
    return hidden_1LL if silent_SL is None else hidden_1LL | silent_SL[:, None, :]


def _plain(
    q_HSLD: Tensor, k_KSLD: Tensor, v_KSLD: Tensor, hidden_SLL: Tensor, *, scaling: float | None, softcap: float | None
) -> Tensor:
    """The definition, with scores in at least float32."""
    heads, sequences, width, size = q_HSLD.shape
    groups = heads // k_KSLD.shape[0]
    k_HSLD, v_HSLD = (x.repeat_interleave(groups, dim=0) if groups > 1 else x for x in (k_KSLD, v_KSLD))
    q_BLD, k_BLD, v_BLD = (x.flatten(0, 1) for x in (q_HSLD, k_HSLD, v_HSLD))
    precision = torch.promote_types(q_BLD.dtype, torch.float32)
    mask_SLL = torch.zeros_like(hidden_SLL, dtype=precision).masked_fill_(hidden_SLL, float("-inf"))
    mask_BLL = mask_SLL if len(mask_SLL) == 1 else mask_SLL.expand(heads, sequences, width, width).flatten(0, 1)
    scale = size**-0.5 if scaling is None else scaling
    if softcap is None and precision is q_BLD.dtype:
        scores_BLL = torch.baddbmm(mask_BLL, q_BLD, k_BLD.mT, alpha=scale)
    else:
        scores_BLL = torch.bmm(q_BLD, k_BLD.mT).to(precision) * scale
        if softcap is not None:
            scores_BLL = torch.tanh(scores_BLL / softcap) * softcap
        scores_BLL = scores_BLL + mask_BLL
    return torch.bmm(scores_BLL.softmax(-1).to(v_BLD.dtype), v_BLD).view_as(q_HSLD)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # every sequence's mask is its block's
