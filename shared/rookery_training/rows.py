"""Products of many adapters' rows, each adapter's with its own matrix, all at once.

A pass has one `Rows`. It takes a [T, D] matrix apart into the form that its products want, and puts it together again.
`GroupedRows` leaves the rows as they are and uses torch's grouped products; `PaddedRows` makes padded blocks and uses
batched ones. Which is faster depends on the device and the precision: `rows_of` chooses.

Shapes: N adapters, T rows in all, G groups and L rows of a padded block, I and O features before and after a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from rookery_training.packing import Buckets

Parts = Sequence[Tensor]
"""Rows in a form that products want."""


class Rows(Protocol):
    """Rows of one adapter after another."""

    def take(self, rows_TD: Tensor) -> Parts:
        """Apart."""

    def give(self, parts: Parts) -> Tensor:
        """[T, D] Together again."""

    def spread(self, values_N: Tensor) -> Parts:
        """Each adapter's value beside all of its rows, and zero where there is no row."""

    def arrange(self, matrices_N: Tensor) -> Parts:
        """[N, ...] Each part's adapters' matrices, as `times` wants them."""

    def times(self, parts: Parts, factors: Parts) -> Parts:
        """Each row with its adapter's matrix: [G, I, O] for each part."""

    def add_outer(self, left: Parts, right: Parts, into_NOI: Tensor) -> None:
        """Add for each adapter the sum of its rows' outer products, where `right` or `left` is zero without a row."""


class GroupedRows:
    """Rows as they are, without padding, and grouped products."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        lengths_N = torch.tensor(lengths)
        self._ends_N = lengths_N.cumsum(0).to(device, torch.int32)
        self._lengths_N = lengths_N.to(device)
        self._total = int(lengths_N.sum())

    def take(self, rows_TD: Tensor) -> Parts:
        return (rows_TD,)

    def give(self, parts: Parts) -> Tensor:
        return parts[0]

    def spread(self, values_N: Tensor) -> Parts:
        return (torch.repeat_interleave(values_N, self._lengths_N, output_size=self._total)[:, None],)

    def arrange(self, matrices_N: Tensor) -> Parts:
        return (matrices_N,)

    def times(self, parts: Parts, factors: Parts) -> Parts:
        return (grouped_mm(parts[0], factors[0], offs=self._ends_N),)

    def add_outer(self, left: Parts, right: Parts, into_NOI: Tensor) -> None:
        into_NOI += grouped_mm(left[0].T, right[0], offs=self._ends_N)


class PaddedRows:
    """Rows as a few padded blocks, each of adapters with about as many, and batched products."""

    def __init__(self, lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self._buckets = Buckets.of(lengths, device, dtype)
        self._whole = len(self._buckets.blocks) == 1
        self._even = lengths[0] if len({*lengths}) == 1 else 0
        """Rows of each adapter if all have as many: then they lie as a block does."""

    def take(self, rows_TD: Tensor) -> Parts:
        if self._even:
            return (rows_TD.view(-1, self._even, rows_TD.shape[1]),)
        return self._buckets.pad(rows_TD)

    def give(self, parts: Parts) -> Tensor:
        return parts[0].flatten(0, 1) if self._even else self._buckets.unpad(parts)

    def spread(self, values_N: Tensor) -> Parts:
        return [
            (values_N.index_select(0, block.groups_G)[:, None] * block.real_GL)[:, :, None]
            for block in self._buckets.blocks
        ]

    def arrange(self, matrices_N: Tensor) -> Parts:
        if self._whole:
            return (matrices_N,)
        return [matrices_N.index_select(0, block.groups_G) for block in self._buckets.blocks]

    def times(self, parts: Parts, factors: Parts) -> Parts:
        return [torch.bmm(part, factor) for part, factor in zip(parts, factors, strict=True)]

    def add_outer(self, left: Parts, right: Parts, into_NOI: Tensor) -> None:
        for left_GLO, right_GLI, block in zip(left, right, self._buckets.blocks, strict=True):
            sums_GOI = torch.bmm(left_GLO.mT, right_GLI)
            if self._whole:
                into_NOI += sums_GOI
            else:
                into_NOI.index_add_(0, block.groups_G, sums_GOI.to(into_NOI.dtype))


def rows_of(lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> Rows:
    """The faster form on this device.

    Torch's grouped products are a kernel on GPUs of compute capability 9 and 10, in 16 bits; not measured yet. On CPU
    they are a loop over small products: in float32 and on one core 1.2 times as fast as batched ones, 0.4 times if
    several cores have to share each of them, and a third in bfloat16. Elsewhere they are a loop that waits for the
    device.
    """
    if device.type == "cpu":
        grouped = dtype is torch.float32 and torch.get_num_threads() == 1
    else:
        grouped = dtype.itemsize == 2 and torch.cuda.get_device_capability(device)[0] in (9, 10)
    return GroupedRows(lengths, device) if grouped else PaddedRows(lengths, device, dtype)
