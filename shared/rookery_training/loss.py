"""The loss of a frozen output head, without keeping logits.

The head has no gradient of its own, so the gradient of its input can be had together with the loss, a few tokens at a
time: memory for logits is one chunk's, whatever the vocabulary.

Shapes: P predicted tokens, D dimensions, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Most logits at a time: 4 MiB of float32, which stay in a processor's cache; 512 MiB, which keep a GPU busy."""
MIN_CHUNK = 64
"""Tokens; with fewer, reading the head takes longer than multiplying by it."""


def chunk_tokens(weight_VD: Tensor) -> int:
    """Tokens whose logits are there at a time."""
    return max(MIN_CHUNK, CHUNK_LOGITS[weight_VD.device.type] // len(weight_VD))


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes arguments by position
        ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, targets_P: Tensor, weights_P: Tensor, cap: float | None
    ) -> Tensor:
        precision = torch.promote_types(hidden_PD.dtype, torch.float32)
        losses_P = torch.empty(len(hidden_PD), device=hidden_PD.device, dtype=precision)
        gradient_PD = torch.empty_like(hidden_PD)
        chunk = chunk_tokens(weight_VD)
        for begin in range(0, len(hidden_PD), chunk):
            part = slice(begin, begin + chunk)
            logits_CV = linear(hidden_PD[part], weight_VD).to(precision)
            if cap is not None:
                logits_CV = torch.tanh(logits_CV / cap) * cap
            targets_C1 = targets_P[part, None]
            d_CV = logits_CV.log_softmax(-1)
            negative_C1 = d_CV.gather(1, targets_C1).neg_()
            losses_P[part] = negative_C1[:, 0]
            d_CV.exp_().scatter_add_(1, targets_C1, torch.full_like(negative_C1, -1.0))
            d_CV *= weights_P[part, None]
            if cap is not None:
                d_CV *= 1.0 - (logits_CV / cap) ** 2
            torch.mm(d_CV.to(hidden_PD.dtype), weight_VD, out=gradient_PD[part])
            del logits_CV, d_CV  # before the next ones are made
        ctx.save_for_backward(gradient_PD)
        return losses_P

    @staticmethod
    def backward(ctx: Any, scale_P: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_PD,) = ctx.saved_tensors
        return gradient_PD * scale_P[:, None].to(gradient_PD.dtype), None, None, None, None


def frozen_head_loss(
    hidden_PD: Tensor, weight_VD: Tensor, targets_P: Tensor, weights_P: Tensor, *, cap: float | None = None
) -> Tensor:
    """Negative log-likelihoods [P] in nats.

    Their gradient is already multiplied by `weights_P`: backward from their plain sum. `cap` is the bound on logits of
    models that have one (Gemma 2's `final_logit_softcapping`).
    """
    losses_P: Tensor = _FrozenHeadLoss.apply(hidden_PD, weight_VD, targets_P, weights_P, cap)  # type: ignore[no-untyped-call]
    return losses_P
