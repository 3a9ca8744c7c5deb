"""PEFT's names for the parts of a LoRA adapter on disk. Torch-free: stores and services know them too."""

from __future__ import annotations

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def factor_key(layer: str, factor: str) -> str:
    """The key in the weights file of a layer's `A` or `B`."""
    return f"{_PREFIX}{layer}.lora_{factor}.weight"


def layer_and_factor(key: str) -> tuple[str, str]:
    """The inverse of `factor_key`."""
    layer, _, factor = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
    return layer, factor
