"""Linear layers with the changes of many adapters, and the gradients of those changes.

Shapes: N adapters of a pass, T tokens, R the widest rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from rookery_training.bank import Layout, Site
from rookery_training.rows import Parts, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What the adapted layers need to know about one forward and backward pass over adapters of a bank."""

    layout: Layout
    weights_NW: Tensor
    """The adapters' weights, in the bank's precision."""
    arranged: Parts | None
    """Copies of them in the base model's precision, beside the rows of each part. None if that is the bank's, too: then
    a layer's are put there when they are needed, and never all at once."""
    gradients_NW: Tensor
    """Where their gradients are added up."""
    rows: Rows
    scale: Parts
    """Beside each row its adapter's alpha over rank, and zero in padding: so nothing in there counts."""
    anchor: Tensor
    """Something that requires a gradient: the first layers' inputs do not, and autograd must call them back."""
    dropout: Dropout | None

    def drop(self, x_TI: Tensor, site: Site) -> Tensor:
        """Dropout at a layer's input, and at the gradient of it."""
        return x_TI if self.dropout is None else x_TI * self.dropout.mask(site, x_TI.dtype)

    def factors(self, view: Callable[[Tensor, Site], Tensor], site: Site) -> Parts:
        """One of a layer's factors, for each part."""
        if self.arranged is None:
            return self.rows.arrange(view(self.weights_NW, site))
        return [view(part, site) for part in self.arranged]

    def scaled(self, parts: Parts) -> Parts:
        return [part.mul_(scale) for part, scale in zip(parts, self.scale, strict=True)]


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


def dropout_keys(seeds: Sequence[int], draws: Sequence[int], places: Sequence[range]) -> Tensor:
    """[T] A key for every token of every adapter, from its seed, how often it has drawn, and its place."""
    keys = [
        _mix(_mix(torch.tensor(seed) + draw * 0x85EBCA6B) + torch.arange(place.start, place.stop))
        for seed, draw, place in zip(seeds, draws, places, strict=True)
    ]
    return torch.cat(keys)


class _GroupedLora(torch.autograd.Function):
    """y += scale * (x A^T) B^T for all adapters of a pass.

    Gradients of the factors go straight to where they are added up. What is kept for the backward pass is x itself,
    which the layers beside this one share, and the product in the middle, R wide.
    """

    @staticmethod
    def forward(  # autograd passes arguments by position
        ctx: Any, y_1TO: Tensor, x_1TI: Tensor, _anchor: Tensor, site: Site, current: Pass
    ) -> Tensor:
        rows, layout = current.rows, current.layout
        a_RI, b_OR = current.factors(layout.a, site), current.factors(layout.b, site)
        h = current.scaled(rows.times(rows.take(current.drop(x_1TI[0], site)), [a.mT for a in a_RI]))
        y_1TO[0] += rows.give(rows.times(h, [b.mT for b in b_OR]))
        ctx.save_for_backward(x_1TI, *h)
        ctx.site, ctx.current = site, current
        ctx.mark_dirty(y_1TO)
        return y_1TO

    @staticmethod
    def backward(ctx: Any, dy_1TO: Tensor) -> tuple[Tensor | None, ...]:
        x_1TI, *h = ctx.saved_tensors
        site, current = ctx.site, ctx.current
        rows, layout = current.rows, current.layout
        a_RI, b_OR = current.factors(layout.a, site), current.factors(layout.b, site)
        dy = rows.take(dy_1TO[0])
        rows.add_outer(dy, h, layout.b(current.gradients_NW, site))
        dh = current.scaled(rows.times(dy, b_OR))
        rows.add_outer(dh, rows.take(current.drop(x_1TI[0], site)), layout.a(current.gradients_NW, site))
        dx_1TI = None
        if ctx.needs_input_grad[1]:
            dx_1TI = current.drop(rows.give(rows.times(dh, a_RI)), site)[None]
        return dy_1TO, dx_1TI, None, None, None


class AdaptedLayers:
    """Hooks that change the output of linear layers during a pass, and do nothing outside of one."""

    def __init__(self) -> None:
        self._running: dict[int, Pass] = {}
        """By the thread that began it."""

    @contextmanager
    def on(self, layers: Sequence[tuple[Site, torch.nn.Linear]]) -> Iterator[None]:
        """The layers hooked, and left as they were afterwards."""
        hooks = [layer.register_forward_hook(self._hook(site)) for site, layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def during(self, current: Pass) -> Iterator[None]:
        """A forward and backward pass in this thread."""
        self._running[get_ident()] = current
        try:
            yield
        finally:
            del self._running[get_ident()]

    def _current(self) -> Pass | None:
        """This thread's; in a GPU's own thread, which computes activations again, the only one that there is."""
        return self._running.get(get_ident()) or next(iter(self._running.values()), None)

    def _hook(self, site: Site) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def change(_: torch.nn.Module, inputs: tuple[Tensor, ...], output_1TO: Tensor) -> Tensor:
            current = self._current()
            if current is None:
                return output_1TO
            changed_1TO: Tensor = _GroupedLora.apply(  # type: ignore[no-untyped-call]
                output_1TO, inputs[0], current.anchor, site, current
            )
            return changed_1TO

        return change
