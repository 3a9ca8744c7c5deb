"""PEFT's own format for one adapter, from and to a row of a bank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from rookery_shared.peft_format import CONFIG, WEIGHTS
from rookery_shared.types import LoraRecipe


def write_adapter(
    folder: Path, weights: Mapping[str, Tensor], recipe: LoraRecipe, *, base: str, targets: set[str]
) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`. The same weights give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: weights[key].contiguous().cpu() for key in sorted(weights)}, folder / WEIGHTS, {"format": "pt"})
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=sorted(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    content = json.loads((folder / CONFIG).read_text())
    content["target_modules"] = sorted(content["target_modules"])  # PEFT writes sets in the order of the day
    (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True))


def read_factors(folder: Path) -> dict[str, Tensor]:
    """All factors of an adapter by key. Raises OSError and safetensors' errors."""
    factors: dict[str, Tensor] = load_file(folder / WEIGHTS)
    return factors
