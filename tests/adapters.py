"""PEFT's adapters on disk, compared; and in memory, with their first weights from a seed."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rookery_shared.peft_format import WEIGHTS
from rookery_shared.types import LoraRecipe


def factors(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / WEIGHTS)
    return loaded


def products(folder: Path) -> list[Tensor]:
    """BA of every layer."""
    loaded = factors(folder)
    return [loaded[key.replace("lora_A", "lora_B")] @ loaded[key] for key in sorted(loaded) if "lora_A" in key]


def relative_difference(one: Path, other: Path) -> float:
    """Of the products, against those of the second; mean over layers."""
    pairs = zip(products(one), products(other), strict=True)
    relative = [((a - b).norm() / b.norm().clamp(min=1e-12)).item() for a, b in pairs]
    return statistics.fmean(relative)


def with_adapter(model: PreTrainedModel, recipe: LoraRecipe, *, seed: int) -> Any:
    """PEFT's own model around a base, for training."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)
