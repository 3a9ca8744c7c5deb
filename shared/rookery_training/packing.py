"""Many adapters' sequences end to end in one row, and where each of them lies.

Tokens of one adapter are contiguous, and so are those of one sequence. Attention sees sequences and LoRA sees adapters.

Shapes: T tokens in the row, G groups (sequences or adapters), L tokens of the longest group of a block, D any width, P
predicted tokens, N adapters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from rookery_training.policy import Objective
from rookery_training.sequences import Tokens


@dataclass(frozen=True, slots=True)
class Block:
    """Groups of about the same length, padded to the longest."""

    groups_G: Tensor
    """Which ones."""
    width: int
    rows: Tensor
    """The row in each cell [G*L]; the group's own first row where there is none."""
    real_GL: Tensor
    """True where there is a row."""
    silent_GL: Tensor | None = None
    """True where a row is not seen by others, nor by itself; None if all are."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Groups of consecutive rows as a few padded blocks."""

    lengths: Sequence[int]
    blocks: list[Block]
    cell_of_row: Tensor
    """[T] Into the cells of all blocks, one after the other."""
    bounds: Tensor
    """[G + 1] int32; where each group begins, and the end."""

    SHORTEST: ClassVar[int] = 32
    """Groups of up to this length may have a block of their own, those of up to twice as much another, and so on."""
    WORTHWHILE: ClassVar[int] = 128
    """A block of its own is worth its operations if it saves so many cells of padding in float32, four times as many in
    16 bits, where cells cost less and operations as much."""

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, dtype: torch.dtype, *, silent: Sequence[int] = ()
    ) -> Buckets:
        """Groups of these lengths, each at least 1, one after the other; and how many last rows of each are silent.

        `dtype` is that of what will be in the cells.
        """
        worthwhile = cls.WORTHWHILE * (4 if dtype.itemsize == 2 else 1)
        lengths_G = torch.tensor(lengths)
        starts_G = torch.cumsum(lengths_G, 0) - lengths_G
        cell_of_row = torch.empty(sum(lengths), dtype=torch.long)
        blocks, cells = [], 0
        for groups in _alike(lengths, cls.SHORTEST, worthwhile):
            groups_G = torch.tensor(groups)
            width = max(lengths[group] for group in groups)
            columns_L = torch.arange(width)
            real_GL = columns_L < lengths_G[groups_G, None]
            row_of_cell_GL = torch.where(real_GL, starts_G[groups_G, None] + columns_L, starts_G[groups_G, None])
            cell_of_row[row_of_cell_GL[real_GL]] = cells + real_GL.flatten().nonzero()[:, 0]
            rows = row_of_cell_GL.flatten().to(device)
            silent_GL = None
            if any(silent):
                audible_G = lengths_G[groups_G] - torch.tensor(silent)[groups_G]
                silent_GL = (columns_L >= audible_G[:, None]).to(device)
            blocks.append(Block(groups_G.to(device), width, rows, real_GL.to(device), silent_GL))
            cells += real_GL.numel()
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(lengths, blocks, cell_of_row.to(device), bounds.to(device))

    def pad(self, rows: Tensor, *, dim: int = 0) -> list[Tensor]:
        """A tensor for each block, with groups and their rows [..., G, L, ...] where `rows` has T."""
        before, after = rows.shape[:dim], rows.shape[dim + 1 :]
        return [rows.index_select(dim, block.rows).view(*before, -1, block.width, *after) for block in self.blocks]

    def unpad(self, blocks: Sequence[Tensor], *, dim: int = 0) -> Tensor:
        """The inverse: T where the blocks have groups and rows."""
        return torch.cat([block.flatten(dim, dim + 1) for block in blocks], dim).index_select(dim, self.cell_of_row)


def _alike(lengths: Sequence[int], shortest: int, worthwhile: int) -> list[list[int]]:
    """The groups of each block, in order, from the shortest groups to the longest."""
    doublings: defaultdict[int, list[int]] = defaultdict(list)
    for group, length in enumerate(lengths):
        doublings[max(0, (length - 1) // shortest).bit_length()].append(group)
    blocks: list[list[int]] = []
    width = 0
    for _, longer in sorted(doublings.items()):
        narrower, width = width, max(lengths[group] for group in longer)
        if blocks and (width - narrower) * len(blocks[-1]) < worthwhile:
            blocks[-1] = sorted(blocks[-1] + longer)
        else:
            blocks.append(longer)
    return blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Sequences of one adapter's micro-batch that share a pass: all of them, or as many as fit."""

    slot: int
    sequences: Sequence[Tokens]
    before: int
    """Tokens of the micro-batch that come earlier, in other pieces."""
    counted: float
    """Divisor of the loss of the whole optimiser step."""
    scale: float
    """The adapter's alpha over its rank."""
    dropout: float
    seed: int
    """Of the dropout."""
    draw: int
    """Which of the adapter's micro-batches."""

    @property
    def tokens(self) -> int:
        return sum(len(s.tokens) for s in self.sequences)

    def part(self, sequences: Sequence[Tokens], before: int) -> Piece:
        return replace(self, sequences=sequences, before=before)


@dataclass(frozen=True, slots=True)
class Packed:
    """The input of one pass."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    sequences: Buckets
    lengths: list[int]
    """Tokens of each adapter."""
    predicting_P: Tensor
    """Rows whose next token is predicted."""
    targets_P: Tensor
    weights_P: Tensor
    """Of each loss in its adapter's."""
    adapter_P: Tensor
    """Index among the N of this pass."""
    objective: Objective | None
    """None if all sequences are learned by their likelihood."""


def pack(pieces: Sequence[Piece], *, device: torch.device, dtype: torch.dtype) -> Packed:
    """The pieces end to end, without padding, for a model of this precision.

    Positions start again at 0 with every sequence.
    """
    precision = torch.promote_types(dtype, torch.float32)
    tokens: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        for sequence in piece.sequences:
            first, length, predicted = len(tokens), len(sequence.tokens), sequence.predicted
            tokens += sequence.tokens
            positions += sequence.positions
            predicting += range(first + length - 1 - predicted, first + length - 1)
            targets += sequence.tokens[length - predicted :]
            weights += [weight / piece.counted for weight in sequence.weights]
    sequences = [sequence for piece in pieces for sequence in piece.sequences]
    predicted_N = torch.tensor([sum(s.predicted for s in piece.sequences) for piece in pieces])
    return Packed(
        input_ids_1T=torch.tensor([tokens]).to(device),
        position_ids_1T=torch.tensor([positions]).to(device),
        sequences=Buckets.of([len(s.tokens) for s in sequences], device, dtype, silent=[s.silent for s in sequences]),
        lengths=[piece.tokens for piece in pieces],
        predicting_P=torch.tensor(predicting).to(device),
        targets_P=torch.tensor(targets).to(device),
        weights_P=torch.tensor(weights, dtype=precision).to(device),
        adapter_P=torch.repeat_interleave(torch.arange(len(pieces)), predicted_N).to(device),
        objective=Objective.of([(s.predicted, s.sampled) for s in sequences], device=device, dtype=precision),
    )
