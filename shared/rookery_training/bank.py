"""The weights of many adapters side by side.

Every adapter is one row of a matrix: all of its A and B factors end to end, padded with zeros to the widest rank and
over the layers that it does not target. Zeros stay zeros, since neither factor gets a gradient where the other is zero,
so an adapter in a bank learns what it would learn alone. One row a slot makes the optimiser a few operations on a
matrix, and a layer's factors of all slots are views of it for grouped products.

Shapes: N slots, W weights of a slot, R the widest rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery_shared.types import ALL_LINEAR


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


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the factors of every layer lie in a row."""

    sites: tuple[Site, ...] = ()
    """In the model's order."""
    rank: int = 0

    @classmethod
    def of(cls, linear: Iterable[tuple[int, str, torch.nn.Linear]], targets: set[str], rank: int) -> Layout:
        """Room for adapters of at most `rank` on the targeted ones of the model's linear layers.

        The rank is rounded up to 8, so that rows of a factor lie on 16 bytes, as grouped products want it.
        """
        sites, offset, rank = [], 0, -(-rank // 8) * 8
        for index, name, layer in linear:
            if is_targeted(name, targets):
                sites.append(Site(name, layer.in_features, layer.out_features, offset, index))
                offset += rank * (layer.in_features + layer.out_features)
        return cls(tuple(sites), rank)

    @property
    def width(self) -> int:
        return sum(self.rank * (site.inputs + site.outputs) for site in self.sites)

    def covers(self, other: Layout) -> bool:
        """Whether every adapter of the other layout has room in this one."""
        return self.rank >= other.rank and {site.name for site in self.sites} >= {site.name for site in other.sites}

    def a(self, matrix_NW: Tensor, site: Site) -> Tensor:
        """A view [N, R, I] of a matrix of this layout."""
        end = site.offset + self.rank * site.inputs
        return matrix_NW[:, site.offset : end].view(-1, self.rank, site.inputs)

    def b(self, matrix_NW: Tensor, site: Site) -> Tensor:
        """A view [N, O, R] of a matrix of this layout."""
        begin = site.offset + self.rank * site.inputs
        end = begin + site.outputs * self.rank
        return matrix_NW[:, begin:end].view(-1, site.outputs, self.rank)

    def factors(self, row_W: Tensor, site: Site, rank: int) -> tuple[Tensor, Tensor]:
        """Views of one adapter's own A [rank, I] and B [O, rank]."""
        return self.a(row_W[None], site)[0, :rank], self.b(row_W[None], site)[0, :, :rank]


def is_targeted(name: str, targets: set[str]) -> bool:
    """PEFT's rule: a target is a layer's full name or the end of it."""
    return ALL_LINEAR in targets or any(name == target or name.endswith(f".{target}") for target in targets)


class Bank:
    """Weights, gradients and moments of `slots` adapters."""

    def __init__(self, layout: Layout, *, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layout, self.slots = layout, slots
        self.weights_NW, self.gradients_NW, self.first_NW, self.second_NW = (
            torch.zeros(slots, layout.width, device=device, dtype=dtype) for _ in range(4)
        )

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.weights_NW, self.gradients_NW, self.first_NW, self.second_NW

    @staticmethod
    def bytes_of_slot(layout: Layout, precision: torch.dtype, base: torch.dtype) -> int:
        """What an adapter takes: its four rows, and its weights once more if the base has another precision."""
        copies = 4 * precision.itemsize + (base.itemsize if base is not precision else 0)
        return layout.width * copies

    def copy_rows(self, other: Bank, slots: int) -> None:
        """Take over the first `slots` adapters of another bank, all of which this one's layout has room for."""
        here, rank = {site.name: site for site in self.layout.sites}, min(self.layout.rank, other.layout.rank)
        for mine_NW, theirs_NW in zip(self.matrices, other.matrices, strict=True):
            for site in other.layout.sites:
                if site.name in here:
                    mine_a_NRI, theirs_a_NRI = self.layout.a(mine_NW, here[site.name]), other.layout.a(theirs_NW, site)
                    mine_b_NOR, theirs_b_NOR = self.layout.b(mine_NW, here[site.name]), other.layout.b(theirs_NW, site)
                    mine_a_NRI[:slots, :rank] = theirs_a_NRI[:slots, :rank]
                    mine_b_NOR[:slots, :, :rank] = theirs_b_NOR[:slots, :, :rank]

    def clear(self, slot: int) -> None:
        for matrix_NW in self.matrices:
            matrix_NW[slot].zero_()

    def move(self, source: int, target: int) -> None:
        for matrix_NW in self.matrices:
            matrix_NW[target] = matrix_NW[source]


def initial_a(inputs: int, rank: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """[rank, inputs], uniform as PEFT draws it: Kaiming with a slope of sqrt(5), which is 1/sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)
    return torch.empty(rank, inputs, dtype=dtype).uniform_(-bound, bound, generator=generator)


def own_sites(layout: Layout, targets: Sequence[str]) -> list[Site]:
    """The sites of an adapter with these targets."""
    return [site for site in layout.sites if is_targeted(site.name, {*targets})]
