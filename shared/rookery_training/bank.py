"""The weights of many adapters side by side, and the layers that apply them.

Every adapter is one row of a matrix: all of its A and B factors end to end, padded with zeros to the widest rank and
over the layers that it does not target. Zeros stay zeros, since neither factor gets a gradient where the other is zero,
so an adapter in a bank learns what it would learn alone. One row a slot makes the optimiser a few operations on a
matrix, and a layer's factors of all slots are views of it for grouped products.

Shapes: N slots in a pass, W weights of a slot, R the widest rank, T tokens, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rookery_training.packing import Groups


@dataclass(frozen=True, slots=True)
class Site:
    """A linear layer that adapters may change, and where its factors lie in a row."""

    name: str
    """Its full name in the model."""
    inputs: int
    outputs: int
    offset: int
    """Of A [R, I]; B [O, R] follows."""
    index: int
    """Among all linear layers of the model."""


def aligned(rank: int) -> int:
    """The next rank at which rows of a factor lie on 16 bytes, as grouped products want it."""
    return -(-rank // 8) * 8


def lay_out(layers: Sequence[tuple[int, str, torch.nn.Linear]], rank: int) -> tuple[list[Site], int]:
    """Sites in the model's order, and the number of weights in a row."""
    sites, offset = [], 0
    for index, name, layer in layers:
        sites.append(Site(name, layer.in_features, layer.out_features, offset, index))
        offset += rank * (layer.in_features + layer.out_features)
    return sites, offset


class Bank:
    """Weights, gradients and moments of `slots` adapters of at most `rank` over the given sites."""

    def __init__(
        self, sites: Sequence[Site], width: int, *, slots: int, rank: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.sites, self.rank, self.slots, self.width = sites, rank, slots, width
        self.weights_NW, self.gradients_NW, self.first_NW, self.second_NW = (
            torch.zeros(slots, width, device=device, dtype=dtype) for _ in range(4)
        )

    def a(self, matrix_NW: Tensor, site: Site) -> Tensor:
        """A view [N, R, I] of a matrix of the bank's width."""
        end = site.offset + self.rank * site.inputs
        return matrix_NW[:, site.offset : end].view(-1, self.rank, site.inputs)

    def b(self, matrix_NW: Tensor, site: Site) -> Tensor:
        """A view [N, O, R] of a matrix of the bank's width."""
        begin = site.offset + self.rank * site.inputs
        end = begin + site.outputs * self.rank
        return matrix_NW[:, begin:end].view(-1, site.outputs, self.rank)

    def clear(self, slot: int) -> None:
        for matrix_NW in (self.weights_NW, self.gradients_NW, self.first_NW, self.second_NW):
            matrix_NW[slot].zero_()

    def move(self, source: int, target: int) -> None:
        for matrix_NW in (self.weights_NW, self.gradients_NW, self.first_NW, self.second_NW):
            matrix_NW[target] = matrix_NW[source]


def initial_a(inputs: int, rank: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """[rank, inputs], uniform as PEFT draws it: Kaiming with a slope of sqrt(5), which is 1/sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)
    return torch.empty(rank, inputs, dtype=dtype).uniform_(-bound, bound, generator=generator)


@dataclass(slots=True, eq=False)
class Pass:
    """What the adapted layers need to know about one forward and backward pass."""

    bank: Bank
    begin: int
    """The pass is over slots `begin` to `begin + N`."""
    weights_NW: Tensor
    """Weights of those slots, in the base model's precision."""
    scale_T1: Tensor
    groups: Groups
    anchor: Tensor
    """Something that requires a gradient: the first layers' inputs do not, and autograd must call them back."""
    dropout: Dropout | None

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        """A [N, R, I] and B [N, O, R]."""
        return self.bank.a(self.weights_NW, site), self.bank.b(self.weights_NW, site)

    def gradients(self, site: Site) -> tuple[Tensor, Tensor]:
        """Where their gradients are added up."""
        gradients_NW = self.bank.gradients_NW[self.begin : self.begin + len(self.weights_NW)]
        return self.bank.a(gradients_NW, site), self.bank.b(gradients_NW, site)

    def drop(self, x_TI: Tensor, site: Site) -> Tensor:
        """Dropout at a layer's input, and at the gradient of it."""
        return x_TI if self.dropout is None else x_TI * self.dropout.mask(site, x_TI.dtype)


@dataclass(frozen=True, slots=True)
class Dropout:
    """Each adapter's dropout as a function of its seed, its step, the layer and the place: the same in any company."""

    rate_T: Tensor
    key_T: Tensor
    """int64; the same for every layer."""

    def mask(self, site: Site, dtype: torch.dtype) -> Tensor:
        """[T, I]: zero or one over the share that is kept."""
        columns_I = torch.arange(site.inputs, device=self.key_T.device)
        key_TI = _mix(self.key_T[:, None] + _mix(columns_I + (site.index + 1) * 0x9E3779B1))
        kept_TI = key_TI.to(torch.float64) >= self.rate_T[:, None] * 2.0**32
        return kept_TI.to(dtype) / (1.0 - self.rate_T[:, None]).to(dtype)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser in 64-bit arithmetic: every bit of the input moves every bit of the output."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    return x ^ (x >> 15)


def dropout_keys(seeds: Sequence[int], lengths: Sequence[int], draws: Sequence[int], device: torch.device) -> Tensor:
    """[T] A key for every token of every adapter, from its seed, how often it has drawn, and its place."""
    keys = [
        _mix(_mix(torch.tensor(s) + d * 0x85EBCA6B) + torch.arange(n))
        for s, n, d in zip(seeds, lengths, draws, strict=True)
    ]
    return torch.cat(keys).to(device)


class _GroupedLora(torch.autograd.Function):
    """y += scale * (x A^T) B^T for all adapters of a pass, in grouped products.

    Gradients of the factors go straight into the bank. What is kept for the backward pass is x itself, which the
    layers beside this one share, and no product.
    """

    @staticmethod
    def forward(  # autograd passes arguments by position
        ctx: Any, y_1TO: Tensor, x_1TI: Tensor, _anchor: Tensor, site: Site, current: Pass
    ) -> Tensor:
        ctx.save_for_backward(x_1TI)
        ctx.site, ctx.current = site, current
        a_NRI, b_NOR = current.factors(site)
        h_TR = current.groups.times(current.drop(x_1TI[0], site), a_NRI.mT) * current.scale_T1
        y_1TO[0] += current.groups.times(h_TR, b_NOR.mT)
        ctx.mark_dirty(y_1TO)
        return y_1TO

    @staticmethod
    def backward(ctx: Any, dy_1TO: Tensor) -> tuple[Tensor | None, ...]:
        (x_1TI,) = ctx.saved_tensors
        site, current = ctx.site, ctx.current
        a_NRI, b_NOR = current.factors(site)
        da_NRI, db_NOR = current.gradients(site)
        dy_TO, x_TI = dy_1TO[0], current.drop(x_1TI[0], site)
        h_TR = current.groups.times(x_TI, a_NRI.mT) * current.scale_T1
        db_NOR += current.groups.outer(dy_TO, h_TR)
        dh_TR = current.groups.times(dy_TO, b_NOR) * current.scale_T1
        da_NRI += current.groups.outer(dh_TR, x_TI)
        dx_1TI = None
        if ctx.needs_input_grad[1]:
            dx_1TI = current.drop(current.groups.times(dh_TR, a_NRI), site)[None]
        return dy_1TO, dx_1TI, None, None, None


def add_adapters(y_1TO: Tensor, x_1TI: Tensor, site: Site, current: Pass) -> Tensor:
    """A layer's output with every adapter's own change to it, in place."""
    changed_1TO: Tensor = _GroupedLora.apply(y_1TO, x_1TI, current.anchor, site, current)  # type: ignore[no-untyped-call]
    return changed_1TO
