"""Names: how new ones are made."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from rookery_shared.types import Example, LoraRecipe

_dice = random.Random(secrets.randbits(256))


def new_id() -> str:
    """Unlike any other, but no secret: drawn without a system call, in which a thread would lose its turn."""
    return f"{_dice.getrandbits(64):016x}"


def run_name() -> str:
    return f"runs/{new_id()}"


def adaptation_name() -> str:
    return f"adaptations/{new_id()}"


def policy_name(profile: str, version: int) -> str:
    return f"{profile}/policies/{version}"


def recipe_digest(*, base_model: str, dtype: str, examples: list[Example], recipe: LoraRecipe, seed: int) -> str:
    """The identity of a training: two with the same digest give the same adapter."""
    content = [base_model, dtype, [asdict(e) for e in examples], asdict(recipe), seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    raise TypeError(type(value).__name__)
