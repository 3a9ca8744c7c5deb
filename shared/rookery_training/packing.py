"""Many adapters' sequences end to end in one row, and where each of them lies.

Tokens of one adapter are contiguous, and so are those of one sequence. Attention sees sequences and LoRA sees adapters,
one as padded blocks (`Buckets`), the other as it is (`Groups`).

Shapes: T tokens in the row, G groups (sequences or adapters), L tokens of the longest group, D any width, P predicted
tokens, N adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from rookery_training.sequences import MicroBatch


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows of one adapter after another, and products that take each with its own adapter's factors."""

    lengths: list[int]
    """Rows of each, at least 1."""
    ends_N: Tensor
    """int32; where each ends."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Groups:
        return cls([*lengths], torch.tensor(lengths).cumsum(0).to(device, torch.int32))

    def spread(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """[T] Each adapter's value in all of its rows."""
        spread_T = torch.repeat_interleave(torch.tensor(values, dtype=dtype), torch.tensor(self.lengths))
        return spread_T.to(self.ends_N.device)

    def times(self, rows_TI: Tensor, factors_NIO: Tensor) -> Tensor:
        """[T, O] Each row with its adapter's matrix."""
        if rows_TI.dtype == torch.float64:  # the kernel knows no doubles
            parts = zip(torch.split(rows_TI, self.lengths), factors_NIO, strict=True)
            return torch.cat([rows @ factor_IO for rows, factor_IO in parts])
        return grouped_mm(rows_TI, factors_NIO, offs=self.ends_N)

    def outer(self, left_TO: Tensor, right_TI: Tensor) -> Tensor:
        """[N, O, I] For each adapter the sum of its rows' outer products."""
        if left_TO.dtype == torch.float64:
            parts = zip(torch.split(left_TO, self.lengths), torch.split(right_TI, self.lengths), strict=True)
            return torch.stack([left.T @ right for left, right in parts])
        return grouped_mm(left_TO.T, right_TI, offs=self.ends_N)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Groups of consecutive rows as a few padded blocks, each of groups of about the same length."""

    blocks: list[tuple[int, int, Tensor]]
    """Groups, width, and the row in each cell [G*L]; the group's own first row where there is none."""
    cell_of_row: Tensor
    """[T] Into the cells of all blocks, one after the other."""

    STEP: ClassVar[int] = 32
    """Lengths are rounded up to a multiple of this, and groups of one rounded length share a block."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Buckets:
        """Groups of these lengths, each at least 1, one after the other."""
        lengths_G = torch.tensor(lengths)
        starts_G = torch.cumsum(lengths_G, 0) - lengths_G
        rounded_G = (lengths_G + cls.STEP - 1) // cls.STEP
        cell_of_row = torch.empty(sum(lengths), dtype=torch.long)
        blocks, cells = [], 0
        for rounded in torch.unique(rounded_G).tolist():
            group = (rounded_G == rounded).nonzero()[:, 0]
            width = int(lengths_G[group].max())
            columns_L = torch.arange(width)
            real_GL = columns_L < lengths_G[group, None]
            row_of_cell_GL = torch.where(real_GL, starts_G[group, None] + columns_L, starts_G[group, None])
            cell_of_row[row_of_cell_GL[real_GL]] = cells + real_GL.flatten().nonzero()[:, 0]
            blocks.append((len(group), width, row_of_cell_GL.flatten().to(device)))
            cells += len(group) * width
        return cls(blocks, cell_of_row.to(device))

    def pad(self, rows_TD: Tensor) -> list[Tensor]:
        """A block [G, L, D] for each bucket."""
        return [
            rows_TD.index_select(0, rows).view(groups, width, *rows_TD.shape[1:]) for groups, width, rows in self.blocks
        ]

    def unpad(self, blocks_GLD: Sequence[Tensor]) -> Tensor:
        """[T, D]"""
        return torch.cat([block.flatten(0, 1) for block in blocks_GLD]).index_select(0, self.cell_of_row)


@dataclass(frozen=True, slots=True)
class Packed:
    """The input of one pass."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    sequences: Buckets
    adapters: Groups
    predicting_P: Tensor
    """Rows whose next token is predicted."""
    targets_P: Tensor
    weights_P: Tensor
    """One over the number of predicted tokens in the adapter's optimiser step."""
    adapter_P: Tensor
    """Index among the N of this pass."""


def pack(batches: Sequence[MicroBatch], *, device: torch.device, dtype: torch.dtype) -> Packed:
    """One micro-batch of each adapter, end to end, without padding.

    Positions start again at 0 with every sequence.
    """
    tokens: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    sequence_lengths: list[int] = []
    adapter_lengths: list[int] = []
    for batch in batches:
        begin, before = len(tokens), len(targets)
        for sequence in batch.sequences:
            first, length = len(tokens), len(sequence.tokens)
            tokens += sequence.tokens
            positions += range(length)
            predicting += range(first + sequence.predict_from - 1, first + length - 1)
            targets += sequence.tokens[sequence.predict_from :]
            sequence_lengths.append(length)
        adapter_lengths.append(len(tokens) - begin)
        counts.append(len(targets) - before)
    share_N = torch.tensor([1.0 / batch.predicted for batch in batches], dtype=dtype)
    adapter_P = torch.repeat_interleave(torch.arange(len(batches)), torch.tensor(counts))
    return Packed(
        input_ids_1T=torch.tensor([tokens]).to(device),
        position_ids_1T=torch.tensor([positions]).to(device),
        sequences=Buckets.of(sequence_lengths, device),
        adapters=Groups.of(adapter_lengths, device),
        predicting_P=torch.tensor(predicting).to(device),
        targets_P=torch.tensor(targets).to(device),
        weights_P=share_N[adapter_P].to(device),
        adapter_P=adapter_P.to(device),
    )
