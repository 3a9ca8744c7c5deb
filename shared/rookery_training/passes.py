"""One forward and backward pass over pieces of many adapters' data.

Shapes: N adapters of the pass, P predicted tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from rookery_training.bank import Bank, Layout
from rookery_training.base import FrozenBase
from rookery_training.cores import Cores, most_side_by_side
from rookery_training.lora import AdaptedLayers, Dropout, Pass, dropout_keys
from rookery_training.loss import frozen_head_loss
from rookery_training.packing import Packed, Piece, pack
from rookery_training.rows import rows_of

LEAST_TOKENS = 256
"""Fewer are not worth a pass of their own, beside another on its share of the cores."""


class Passes:
    """A base whose adapted layers and attention are ready for packed rows, while `on`."""

    def __init__(self, base: FrozenBase) -> None:
        self._base = base
        self._layers = AdaptedLayers()
        self._cores: Cores | None = None

    @contextmanager
    def on(self, layout: Layout) -> Iterator[None]:
        """Hooks in place for a bank of this layout; the base as it was afterwards."""
        modules = {name: layer for _, name, layer in self._base.linear}
        with (
            closing(Cores()) as self._cores,
            self._base.packed_attention(),
            self._layers.on([(site, modules[site.name]) for site in layout.sites]),
        ):
            yield

    def run(self, bank: Bank, pieces: Sequence[Piece]) -> list[float]:
        """Add the pieces' gradients to the bank's; the loss of each.

        The pieces are of consecutive slots. Raises torch's errors of memory, with part of the gradients added.
        """
        worth = sum(piece.tokens for piece in pieces) // LEAST_TOKENS
        count = max(1, min(most_side_by_side(self._base.device), worth))
        assert self._cores is not None, "passes run while they are on"
        losses = self._cores.run([partial(self._run, bank, share) for share in shares(pieces, count)])
        return [loss for share in losses for loss in share]

    def _run(self, bank: Bank, pieces: Sequence[Piece]) -> list[float]:
        packed = pack(pieces, device=self._base.device, dtype=self._base.dtype)
        begin, end = pieces[0].slot, pieces[-1].slot + 1
        current = self._pass(bank.layout, bank.weights_NW[begin:end], bank.gradients_NW[begin:end], pieces, packed)
        with self._layers.during(current):
            losses_P = self._losses(packed)
            torch.autograd.backward(losses_P.sum())
        losses_N = losses_P.new_zeros(len(pieces))
        losses_N.index_add_(0, packed.adapter_P, losses_P.detach() * packed.weights_P)
        return losses_N.tolist()

    @torch.no_grad()
    def log_likelihoods(self, layout: Layout, weights_1W: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """[P] Of the predicted tokens of one adapter's piece, in nats; the adapter is a row of this layout."""
        packed = pack(pieces, device=self._base.device, dtype=self._base.dtype)
        with self._layers.during(self._pass(layout, weights_1W, weights_1W[:0], pieces, packed)):
            return -self._losses(packed)

    def _pass(
        self, layout: Layout, weights_NW: Tensor, gradients_NW: Tensor, pieces: Sequence[Piece], packed: Packed
    ) -> Pass:
        base = self._base
        rows = rows_of(packed.lengths, base.device, base.dtype)
        scale_N = torch.tensor([piece.scale for piece in pieces], dtype=base.dtype).to(base.device)
        same = weights_NW.dtype is base.dtype
        return Pass(
            layout=layout,
            weights_NW=weights_NW,
            arranged=None if same else rows.arrange(weights_NW.to(base.dtype)),
            gradients_NW=gradients_NW,
            rows=rows,
            scale=rows.spread(scale_N),
            anchor=base.anchor,
            dropout=_dropout(pieces, base.device),
        )

    def _losses(self, packed: Packed) -> Tensor:
        """[P]"""
        base, hidden_PD = self._base, self._base.hidden(packed)
        return frozen_head_loss(
            hidden_PD, base.head_VD, packed.targets_P, packed.weights_P, packed.objective, cap=base.cap
        )


def _dropout(pieces: Sequence[Piece], device: torch.device) -> Dropout | None:
    if not any(piece.dropout for piece in pieces):
        return None
    places = [range(piece.before, piece.before + piece.tokens) for piece in pieces]
    rates_N = torch.tensor([piece.dropout for piece in pieces], dtype=torch.float64)
    rate_T = torch.repeat_interleave(rates_N, torch.tensor([len(place) for place in places]))
    keys_T = dropout_keys([piece.seed for piece in pieces], [piece.draw for piece in pieces], places)
    return Dropout(rate_T.to(device), keys_T.to(device))


def shares(pieces: Sequence[Piece], count: int) -> list[list[Piece]]:
    """At most `count` runs of pieces, in order, of about as many tokens each."""
    total, before = sum(piece.tokens for piece in pieces), 0
    taken: defaultdict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        middle = before + piece.tokens / 2
        taken[int(middle * count / total)].append(piece)
        before += piece.tokens
    return [*taken.values()]


def split(pieces: Sequence[Piece], tokens: int) -> Iterator[list[Piece]]:
    """Passes of at most so many tokens, or of one sequence if that is longer, over the pieces' sequences in order."""
    taken: list[Piece] = []
    total = 0
    for piece in pieces:
        before = piece.before
        for sequence in piece.sequences:
            if taken and total + len(sequence.tokens) > tokens:
                yield _joined(taken)
                taken, total = [], 0
            taken.append(piece.part([sequence], before))
            total += len(sequence.tokens)
            before += len(sequence.tokens)
    if taken:
        yield _joined(taken)


def _joined(singles: Sequence[Piece]) -> list[Piece]:
    """One piece for each adapter."""
    joined = []
    for _, group in groupby(singles, key=lambda piece: piece.slot):
        parts = [*group]
        joined.append(parts[0].part([part.sequences[0] for part in parts], parts[0].before))
    return joined
