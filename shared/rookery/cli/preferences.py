"""What a teacher of few-shot tasks chooses: its configurations, counted."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

GROUPS = ("basic", "size", "chain", "repeat")
"""Of augmentations, as configurations call them between "use_" and "_augmentations"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Of some configurations; NaN where there is none that can be read."""

    configurations: int
    groups: dict[str, float]
    """Share that practises with the group's augmentations."""
    outputs_only: float
    """Share whose loss counts outputs alone."""
    learning_rates: tuple[float, float, float]
    """Quartiles."""
    epochs: tuple[float, float, float]
    """Quartiles."""


def preferences(texts: Iterable[str]) -> Preferences:
    """Texts that are no configuration do not count."""
    read = []
    for text in texts:
        with suppress(ValueError, TypeError, KeyError):
            read.append(_read(text))
    flags, outputs, rates, epochs = zip(*read, strict=True) if read else ((), (), (), ())
    return Preferences(
        configurations=len(read),
        groups={group: _share([each[i] for each in flags]) for i, group in enumerate(GROUPS)},
        outputs_only=_share(outputs),
        learning_rates=_quartiles(rates),
        epochs=_quartiles(epochs),
    )


def _read(text: str) -> tuple[tuple[bool, ...], bool, float, float]:
    content = json.loads(text)
    chosen, training = content["data_generation"], content["training"]
    flags = tuple(bool(chosen[f"use_{group}_augmentations"]) for group in GROUPS)
    outputs = training["strategy"] == "train_using_output_tokens"
    return flags, outputs, float(training["learning_rate"]), float(training["num_train_epochs"])


def _share(values: Sequence[bool]) -> float:
    return statistics.fmean(values) if values else math.nan


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (math.nan,) * 3 if not values else (values[0],) * 3
    first, second, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, second, third
