"""How the learning rate moves: transformers' own formulas."""

from __future__ import annotations

import math

from rookery_shared.types import Schedule


def schedule_scale(schedule: Schedule, *, step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate at `step` of `steps`, counted from 0."""
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    match schedule:
        case Schedule.LINEAR:
            return max(0.0, 1.0 - progress)
        case Schedule.COSINE:
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        case Schedule.CONSTANT:
            return 1.0
