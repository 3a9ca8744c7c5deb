"""Contexts of the micro-world: what a run of the tiny models trains and measures on. Torch-free."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rookery_tiny.world import Pair, Question, Surnames, draw_world, passage, test_questions


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldContext:
    title: str
    passage: str
    questions: tuple[Question, ...]


def make_contexts(which: Surnames, count: int, *, seed: int) -> list[WorldContext]:
    """`count` contexts about entities of one set of surnames. No two share an entity."""
    rng = random.Random(f"contexts-{which}-{seed}")
    return [make_context(pair, rng) for pair in draw_world(which, count, seed=seed)]


def make_context(pair: Pair, rng: random.Random) -> WorldContext:
    return WorldContext(title=pair.title, passage=passage(pair, rng), questions=tuple(test_questions(pair)))
