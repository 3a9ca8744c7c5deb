"""AdamW steps of many rows of a bank, each with its own learning rate.

Shapes: N slots, W weights of a slot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rookery_training.bank import Bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step of one slot."""

    slot: int
    rate: float
    decay: float
    clip: float
    """Most norm of the gradient; 0 does not clip."""
    taken: Tensor
    """Steps that the slot has taken; counted up here."""


def gradient_norms(bank: Bank) -> list[float]:
    """Of each slot, over all of its weights."""
    norms: list[float] = torch.linalg.vector_norm(bank.gradients_NW, dim=1).tolist()
    return norms


def take_steps(bank: Bank, steps: Sequence[Step], norms: Sequence[float]) -> None:
    """Clip, step, and leave the slots' gradients as they are."""
    alike: defaultdict[tuple[float, float], list[Step]] = defaultdict(list)
    kept = [1.0] * len(bank.gradients_NW)
    for step in steps:
        kept[step.slot] = min(1.0, step.clip / (norms[step.slot] + 1e-6)) if step.clip else 1.0
        alike[step.rate, step.decay].append(step)
    if min(kept) < 1.0:
        bank.gradients_NW *= bank.gradients_NW.new_tensor(kept)[:, None]
    for (rate, decay), together in alike.items():
        adamw(
            [bank.weights_NW[step.slot] for step in together],
            [bank.gradients_NW[step.slot] for step in together],
            [bank.first_NW[step.slot] for step in together],
            [bank.second_NW[step.slot] for step in together],
            [],
            [step.taken for step in together],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=decay,
            eps=1e-8,
            maximize=False,
        )


def clear_gradients(bank: Bank, slots: Sequence[int], *, used: int) -> None:
    """Zero the gradients of these slots, of the `used` first ones of the bank."""
    if len(slots) == used:
        bank.gradients_NW[:used].zero_()
    else:
        for slot in slots:
            bank.gradients_NW[slot].zero_()
