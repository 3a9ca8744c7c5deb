"""What a teacher of few-shot tasks chooses: its configurations, counted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rookery_shared.grids.configuration import Configuration

Quartiles = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Of at least one configuration."""

    configurations: int
    groups: dict[str, float]
    """Share that practises with the augmentations of each group."""
    outputs_only: float
    """Share whose loss counts outputs alone."""
    learning_rate: Quartiles
    epochs: Quartiles


def choices(texts: Iterable[str]) -> Choices | None:
    """Texts that are no configuration do not count; None if none counts."""
    from rookery_shared.grids.augmentations import GROUPS
    from rookery_shared.grids.configuration import BadConfiguration, Strategy, read_configuration

    read: list[Configuration] = []
    for text in texts:
        with suppress(BadConfiguration):
            read.append(read_configuration(text))
    if not read:
        return None
    return Choices(
        configurations=len(read),
        groups={group.split("_")[1]: statistics.fmean(group in each.groups for each in read) for group in GROUPS},
        outputs_only=statistics.fmean(each.strategy is Strategy.OUTPUT for each in read),
        learning_rate=_quartiles([each.learning_rate for each in read]),
        epochs=_quartiles([each.epochs for each in read]),
    )


def _quartiles(values: Sequence[float]) -> Quartiles:
    if len(values) == 1:
        return (values[0],) * 3
    first, second, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, second, third


def choices_table(chosen: Mapping[str, Choices | None]) -> Table:
    """A column for each time, such as "before RL"."""
    table = Table(title="What the teacher chooses", title_justify="left", title_style="bold")
    table.add_column("")
    columns = {when: [*_told(each)] if each else [] for when, each in chosen.items()}
    for when in columns:
        table.add_column(when, justify="right")
    labels = next((found for found in columns.values() if found), [])
    for row, (label, _) in enumerate(labels):
        table.add_row(label, *(found[row][1] if found else "" for found in columns.values()))
    return table


def _told(each: Choices) -> Iterable[tuple[str, str]]:
    for group, share in each.groups.items():
        yield f"practises with {group} augmentations", f"{share:.0%}"
    yield "loss on outputs only", f"{each.outputs_only:.0%}"
    yield "learning rate, quartiles", ", ".join(f"{value:.2g}" for value in each.learning_rate)
    yield "epochs, quartiles", ", ".join(f"{value:g}" for value in each.epochs)
