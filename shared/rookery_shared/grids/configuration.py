"""A self-edit of the few-shot domain: which augmentations to train on and how to optimise. Read strictly."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rookery_shared.grids.augmentations import GROUPS

LEARNING_RATES = (1e-6, 1e-2)
MOST_EPOCHS = 20


class Strategy(StrEnum):
    """Which tokens the loss counts."""

    ALL = "train_using_all_tokens"
    OUTPUT = "train_using_output_tokens"


class BadConfiguration(ValueError):
    """Says what is wrong with a self-edit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    groups: tuple[str, ...]
    """Names in `GROUPS`, in its order."""
    strategy: Strategy
    learning_rate: float
    epochs: int


SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["data_generation", "training"],
    "properties": {
        "data_generation": {
            "type": "object",
            "additionalProperties": False,
            "required": [*GROUPS],
            "properties": {group: {"type": "boolean"} for group in GROUPS},
        },
        "training": {
            "type": "object",
            "additionalProperties": False,
            "required": ["strategy", "learning_rate", "num_train_epochs"],
            "properties": {
                "strategy": {"enum": [strategy.value for strategy in Strategy]},
                "learning_rate": {"type": "number", "minimum": LEARNING_RATES[0], "maximum": LEARNING_RATES[1]},
                "num_train_epochs": {"type": "integer", "minimum": 1, "maximum": MOST_EPOCHS},
            },
        },
    },
}
"""JSON schema of the text."""


def schema_to_write_by(most_epochs: Callable[[tuple[str, ...]], int]) -> dict[str, Any]:
    """`SCHEMA`, but for numbers whose digits end, for engines that can be held to one; and with no more epochs than
    there may be with some groups, none of them if there may be none. Without a limit to any it is one object."""
    limits: dict[tuple[str, ...], int] = {}
    for flags in itertools.product((True, False), repeat=len(GROUPS)):
        groups = tuple(itertools.compress(GROUPS, flags))
        if most := min(MOST_EPOCHS, most_epochs(groups)):
            limits[groups] = most
    if not limits or {*limits.values()} == {MOST_EPOCHS}:
        return _schema(MOST_EPOCHS)
    return {"anyOf": [_schema(most, groups) for groups, most in limits.items()]}


def _schema(most_epochs: int, groups: tuple[str, ...] | None = None) -> dict[str, Any]:
    """With any groups, or these."""
    schema = copy.deepcopy({**SCHEMA})
    training = schema["properties"]["training"]["properties"]
    training["learning_rate"]["multipleOf"] = LEARNING_RATES[0]
    training["num_train_epochs"]["maximum"] = most_epochs
    if groups is not None:
        flags = schema["properties"]["data_generation"]["properties"]
        flags.update({group: {"const": group in groups} for group in GROUPS})
    return schema


def read_configuration(text: str) -> Configuration:
    """White space around the object does not count. Raises BadConfiguration for anything but what the schema allows."""
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f"it is not JSON: {error}") from None
    _has_keys(content, "the object", SCHEMA["required"])
    flags, training = content["data_generation"], content["training"]
    _has_keys(flags, "data_generation", [*GROUPS])
    _has_keys(training, "training", SCHEMA["properties"]["training"]["required"])
    for group in GROUPS:
        if not isinstance(flags[group], bool):
            raise BadConfiguration(f"{group} is {flags[group]!r}, not true or false")
    return Configuration(
        groups=tuple(group for group in GROUPS if flags[group]),
        strategy=_strategy(training["strategy"]),
        learning_rate=_learning_rate(training["learning_rate"]),
        epochs=_epochs(training["num_train_epochs"]),
    )


def write_configuration(configuration: Configuration) -> str:
    """The text that reads as this."""
    flags = {group: group in configuration.groups for group in GROUPS}
    training = {
        "strategy": configuration.strategy.value,
        "learning_rate": configuration.learning_rate,
        "num_train_epochs": configuration.epochs,
    }
    return json.dumps({"data_generation": flags, "training": training})


def draw_configuration(
    rng: random.Random, *, rates: tuple[float, float] = LEARNING_RATES, most_epochs: int = MOST_EPOCHS
) -> Configuration:
    """Any with equal chances; of learning rates any order of magnitude."""
    least, most = (math.log10(rate) for rate in rates)
    return Configuration(
        groups=tuple(group for group in GROUPS if rng.random() < 0.5),
        strategy=rng.choice([*Strategy]),
        learning_rate=round(10 ** rng.uniform(least, most), 6),
        epochs=rng.randint(1, most_epochs),
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _has_keys(value: object, what: str, keys: list[str]) -> None:
    if not isinstance(value, dict):
        raise BadConfiguration(f"{what} is no JSON object")
    if {*value} != {*keys}:
        wrong = ", ".join(map(repr, sorted({*value} ^ {*keys})))  # of a key all that can be printed, stored and sent
        raise BadConfiguration(f"{what} must have the keys {', '.join(keys)}; missing or unknown: {wrong}")


def _strategy(value: object) -> Strategy:
    if not isinstance(value, str) or value not in {*Strategy}:
        raise BadConfiguration(f"strategy is {value!r}, not one of {', '.join(Strategy)}")
    return Strategy(value)


def _learning_rate(value: object) -> float:
    least, most = LEARNING_RATES
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise BadConfiguration(f"learning_rate is {value!r}, not a number of {least} to {most}")
    return float(value)


def _epochs(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_EPOCHS:
        raise BadConfiguration(f"num_train_epochs is {value!r}, not an integer of 1 to {MOST_EPOCHS}")
    return value
