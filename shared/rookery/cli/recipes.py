"""Recipes, rewards and optimisers from a command's options."""

from __future__ import annotations

from enum import StrEnum

import typer

from rookery.client import Recipe
from rookery.v1 import recipe_pb2
from rookery.v1.run_service_pb2 import Grpo, PolicyOptimiser, RestEm


class RewardName(StrEnum):
    exact = "exact"
    f1 = "f1"
    contains = "contains"
    loglik = "loglik"
    match = "match"
    judge = "judge"
    cells = "cells"
    likelihood = "likelihood"


GRADERS = {
    RewardName.exact: recipe_pb2.GRADER_EXACT,
    RewardName.f1: recipe_pb2.GRADER_F1,
    RewardName.contains: recipe_pb2.GRADER_CONTAINS,
    RewardName.loglik: recipe_pb2.GRADER_LOGLIK,
    RewardName.match: recipe_pb2.GRADER_MATCH,
    RewardName.judge: recipe_pb2.GRADER_JUDGE,
    RewardName.cells: recipe_pb2.GRADER_CELLS,
    RewardName.likelihood: recipe_pb2.GRADER_LIKELIHOOD,
}


def grader(reward: RewardName | None) -> recipe_pb2.Grader.ValueType:
    """The server's default for None."""
    return recipe_pb2.GRADER_UNSPECIFIED if reward is None else GRADERS[reward]


class OptimiserName(StrEnum):
    rest_em = "rest-em"
    grpo = "grpo"


class KeepName(StrEnum):
    best = "best"
    gaining = "gaining"


_KEEP = {KeepName.best: RestEm.KEEP_BEST, KeepName.gaining: RestEm.KEEP_GAINING}


def policy_optimiser(name: OptimiserName, *, keep: KeepName | None = None, least_gain: float = 0.0) -> PolicyOptimiser:
    """None is left to the server's default. Raises BadParameter for GRPO, which keeps nothing apart."""
    if name is OptimiserName.rest_em:
        number = _KEEP[keep] if keep else RestEm.KEEP_UNSPECIFIED
        return PolicyOptimiser(rest_em=RestEm(keep=number, least_gain=least_gain))
    if keep or least_gain:
        raise typer.BadParameter(f"{name} learns from all self-edits", param_hint="--keep, --least-gain")
    return PolicyOptimiser(grpo=Grpo())


def student_recipe(
    *,
    rank: int | None,
    targets: list[str] | None,
    epochs: int | None,
    learning_rate: float | None,
    batch_size: int | None,
    max_steps: int | None,
) -> Recipe:
    """What is None is left to the server's default. Alpha is twice the rank, as SEAL's for texts."""
    recipe = Recipe(targets=targets or [])
    if rank is not None:
        recipe.rank, recipe.alpha = rank, 2 * rank
    if epochs is not None:
        recipe.epochs = epochs
    if learning_rate is not None:
        recipe.learning_rate = learning_rate
    if batch_size is not None:
        recipe.batch_size = batch_size
    if max_steps is not None:
        recipe.max_steps = max_steps
    return recipe
