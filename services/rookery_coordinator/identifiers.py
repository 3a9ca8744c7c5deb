"""Names: how new ones are made."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any

from rookery_shared.domains import Domain
from rookery_shared.types import Context, LoraRecipe

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


def recipe_digest(
    *,
    base_model: str,
    dtype: str,
    domain: Domain,
    context: Context,
    self_edit: str | None,
    recipe: LoraRecipe,
    seed: int,
) -> str:
    """The identity of a training: two with the same digest give the same adapter.

    The examples are not made for it: what they follow from stands for them. Without a self-edit the context is learned
    alone. Its questions decide nothing.
    """
    rules, learned = [domain.name, domain.version], asdict(replace(context, questions=()))
    how = {name: value for name, value in asdict(recipe).items() if name != "max_steps"}  # which decides whether
    content = [base_model, dtype, rules, learned, self_edit, how, seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    raise TypeError(type(value).__name__)
