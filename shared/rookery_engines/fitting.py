"""What an adapter's files say about it: whether it fits a model, and how much it can change."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from safetensors import safe_open
from torch import nn

from rookery_shared.admission import inspect
from rookery_shared.errors import AdapterMismatch
from rookery_shared.peft_format import CONFIG, WEIGHTS, layer_and_factor


def check_fits(model: nn.Module, folder: Path, *, name: str) -> None:
    """Every pair of factors must have the shape of the layer that it names.

    Reads the configuration and the header of the weights only. Raises AdapterRefused for files that are not to be
    loaded at all, AdapterMismatch for those of another model.
    """
    inspected = inspect(folder, name=name)
    for key, shape in inspected.shapes.items():
        path, factor = layer_and_factor(key)
        layer = _find(model, path)
        if layer is None:
            raise AdapterMismatch(f"{name} changes {path}, which the model does not have", adapter=name)
        expected = (inspected.rank, layer[0]) if factor == "A" else (layer[1], inspected.rank)
        if shape != expected:
            raise AdapterMismatch(f"{name} has {key} of shape {shape}; the model needs {expected}", adapter=name)


def largest_change(folder: Path) -> float:
    """No weight of the model changes by more: alpha times the largest weights of both factors, of the layer with most.

    0 if no B factor has a weight other than zero: such an adapter is the base model.
    """
    alpha = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["lora_alpha"]
    largest: defaultdict[str, float] = defaultdict(lambda: float(alpha))
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118  # no mapping
            layer, _ = layer_and_factor(key)
            largest[layer] *= weights.get_tensor(key).abs().max().item()
    return max(largest.values())


def _find(model: nn.Module, path: str) -> tuple[int, int] | None:
    """Input and output features of a linear layer; None if there is none of that name."""
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        return None
    features = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    return features if all(isinstance(n, int) for n in features) else None  # type: ignore[return-value]  # checked
