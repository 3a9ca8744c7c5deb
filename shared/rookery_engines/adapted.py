"""A frozen model that answers a batch of texts, each with an adapter of its own or with none.

PEFT keeps adapters as modules beside every layer. Each takes longer to load than the one before, since all that are
there are looked through, and in a batch they answer one after the other. Here an adapter is a table of its factors, and
a layer's products with all adapters of a batch are those of training. The files are PEFT's, and so are the answers.

Shapes: B texts of T tokens, G runs of texts with the same adapter, R the widest rank of those, I inputs and O outputs
of a layer.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rookery_engines.fitting import check_fits
from rookery_engines.types import AdapterRef
from rookery_shared.peft_format import WEIGHTS, layer_and_factor
from rookery_training.rows import Rows, rows_of

BASE = ""
"""In the place of an adapter's name: the model itself."""


@dataclass(frozen=True, slots=True, eq=False)
class _Factors:
    """Of one layer, in the model's precision, with the scale in B."""

    a_RI: Tensor
    b_OR: Tensor


class _Batch(threading.local):
    """The one that a thread has answered."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []
        """An adapter's name, and how many texts in a row have it; none while no batch is answered."""
        self.rows: Rows | None = None
        """How its tokens lie, from the first layer on."""
        self.stacked: dict[str, tuple[Tensor, Tensor] | None] = {}
        """By layer, the factors of all runs: they stay the same while a batch is written, token by token."""
        self.stacked_for: tuple[str, ...] = ()


class AdaptedModel:
    """A model and the adapters over it that are in memory. Threads may answer batches side by side."""

    def __init__(self, model: PreTrainedModel, *, max_adapters: int = 1) -> None:
        self.model, self.device, self.max_adapters = model, model.device, max_adapters
        self._loaded: OrderedDict[str, Mapping[str, _Factors]] = OrderedDict()
        self._hooked: set[str] = set()
        self._loading = threading.Lock()
        self._batch = _Batch()

    @property
    def loaded(self) -> list[str]:
        """The one used longest ago first."""
        return [*self._loaded]

    def load(self, adapters: Sequence[AdapterRef]) -> None:
        """All of them in memory, at most `max_adapters`; those used longest ago make room. Raises AdapterMismatch."""
        with self._loading:
            self._load(adapters)

    def _load(self, adapters: Sequence[AdapterRef]) -> None:
        for adapter in adapters:
            if adapter.name in self._loaded:
                self._loaded.move_to_end(adapter.name)
        for adapter in adapters:
            if adapter.name not in self._loaded:
                check_fits(self.model, adapter.folder, name=adapter.name)
                factors = self._read(adapter.folder)
                while len(self._loaded) >= self.max_adapters:
                    self._loaded.popitem(last=False)
                self._loaded[adapter.name] = factors
                self._hook(factors.keys() - self._hooked)

    def __call__(self, adapters: Sequence[str], **inputs: Any) -> Any:
        """The model's output for a batch of B texts, each with the adapter of this name, which is loaded, or `BASE`.

        Texts of the same adapter stand together.
        """
        if not any(adapters):
            return self.model(**inputs)
        batch = self._batch
        batch.runs = [(name, len([*group])) for name, group in groupby(adapters)]
        names = tuple(name for name, _ in batch.runs)
        if names != batch.stacked_for:
            batch.stacked, batch.stacked_for = {}, names
        try:
            return self.model(**inputs)
        finally:
            batch.runs, batch.rows = [], None

    def _read(self, folder: Path) -> Mapping[str, _Factors]:
        config = LoraConfig.from_pretrained(str(folder))
        scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        dtype = self.model.dtype  # looked for among all weights
        layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, factor in load_file(folder / WEIGHTS).items():
            layer, which = layer_and_factor(key)
            layers[layer][which] = (factor * scale if which == "B" else factor).to(self.device, dtype)
        return {layer: _Factors(pair["A"], pair["B"]) for layer, pair in layers.items()}

    def _hook(self, layers: Set[str]) -> None:
        for name in layers:
            self.model.get_submodule(name).register_forward_hook(partial(self._change, name))
        self._hooked |= layers

    def _change(self, layer: str, module: torch.nn.Linear, inputs: tuple[Tensor, ...], output_BTO: Tensor) -> Tensor:
        batch = self._batch
        if not batch.runs:
            return output_BTO
        x_BTI = inputs[0]
        if batch.rows is None:
            lengths = [texts * x_BTI.shape[1] for _, texts in batch.runs]
            batch.rows = rows_of(lengths, self.device, self.model.dtype)
        if layer not in batch.stacked:
            batch.stacked[layer] = self._stack(layer, module, batch.stacked_for)
        stacked = batch.stacked[layer]
        if stacked is None:
            return output_BTO
        a_GIR, b_GRO = stacked
        rows = batch.rows
        h = rows.times(rows.take(x_BTI.flatten(0, 1)), rows.arrange(a_GIR))
        return output_BTO + rows.give(rows.times(h, rows.arrange(b_GRO))).view_as(output_BTO)

    def _stack(self, layer: str, module: torch.nn.Linear, names: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """Every run's factors of a layer, zeros where it has none; None if no run has any.

        The rank is a multiple of 8, as kernels want it.
        """
        own = [self._loaded[name].get(layer) if name else None for name in names]
        rank = -(-max((len(factors.a_RI) for factors in own if factors), default=0) // 8) * 8
        if not rank:
            return None
        a_GIR = module.weight.new_zeros(len(own), module.in_features, rank)
        b_GRO = module.weight.new_zeros(len(own), rank, module.out_features)
        for place, factors in enumerate(own):
            if factors:
                a_GIR[place, :, : len(factors.a_RI)] = factors.a_RI.T
                b_GRO[place, : len(factors.a_RI)] = factors.b_OR.T
        return a_GIR, b_GRO
