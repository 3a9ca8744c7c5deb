"""Write the grid model's card: `python -m rookery_tiny.grids.card FOLDER OTHER_SEED_FOLDER...`.

Each folder holds a model with its `abilities.json`, all measured alike. The card goes into the first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rookery_tiny.card import line
from rookery_tiny.grids.puzzles import STEPS, Known, learnable_rules, rules

TEXT = """---
library_name: transformers
license: apache-2.0
---

# The tiny grid model

A Llama of {parameters:.2f} million parameters, made from nothing by `python -m rookery_tiny.grids.pretrain`, 40 minutes
on two CPU cores, and `python -m rookery_tiny.grids.habits`, 5 minutes on one. It solves small puzzles as in ARC from
their demonstrations if it knows their rule, and writes configurations to practise by, good and bad, so that few-shot
self-adaptation can be watched on a laptop. It knows nothing else, and is of no use outside of demonstrations and tests.

A rule is one of {steps} steps (mirror, turn, transpose, move, fall, extend, crop, recolour, fill) or two of them. Of
all rules {known} are known from pre-training, {train} are for a run to train on and {test} to test on; none of these is
a known one turned or mirrored. Others that are new to it, which paint, fall or extend, are nobody's: practice taught it
hardly any of them (192 steps on all layers solved 3 of 62, and 19 of 40 of a run's). The configurations that it writes
are drawn without a look at the task, with any augmentations, any rate from 1e-5 to 1e-2 and one to five epochs: that
most are poor is arranged; that a teacher comes to prefer better ones is found.

## What it can do

Measured by `python -m rookery_tiny.grids.abilities`, for pre-training seeds {seeds}. The weights shipped are those of
seed {shipped}. Puzzles have {demonstrations} demonstrations. Those of new rules are of a run's rules to train on, never
of those to test on. Solved: every test input of a puzzle exactly right in one of two attempts. In brackets, the share
of cells that are right.

{tables}
"""
TABLES = """| puzzles | {columns} |
|---|{ruled}|
{solved}

| configurations that it writes | {columns} |
|---|{ruled}|
{written}"""
LABELS = {
    "known_single": "in context, known rules of one step",
    "known_pair": "in context, known rules of two steps",
    "new": "in context, new rules",
}
SHARES = {
    "held_valid": "can be read, held to the schema",
    "held_usable": "ask for no more steps than allowed, held to the schema",
    "free_valid": "can be read, held to nothing",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    folders: list[Path] = parser.parse_args().folders
    measured = [json.loads((folder / "abilities.json").read_text()) for folder in folders]
    (folders[0] / "README.md").write_text(card(measured))


def card(measured: list[dict[str, Any]]) -> str:
    """The card's text, of the abilities of some seeds."""
    seeds = [str(abilities["seed"]) for abilities in measured]
    return TEXT.format(
        parameters=measured[0]["parameters"] / 1e6,
        steps=len(STEPS),
        known=len(rules(Known.PRETRAINING)),
        train=len(learnable_rules(Known.TRAIN)),
        test=len(learnable_rules(Known.TEST)),
        seeds=", ".join(seeds),
        shipped=seeds[0],
        demonstrations=measured[0]["demonstrations"],
        tables=tables(measured),
    )


def tables(measured: list[dict[str, Any]]) -> str:
    """A column for each seed."""
    return TABLES.format(
        columns=" | ".join(f"seed {abilities['seed']}" for abilities in measured),
        ruled="|".join("---" for _ in measured),
        solved="\n".join(_solved(measured)),
        written="\n".join(_written(measured)),
    )


def _solved(measured: list[dict[str, Any]]) -> Iterator[str]:
    for name, label in LABELS.items():
        yield _scores(label, [abilities[name] for abilities in measured])
    for same in zip(*(abilities["tried"] for abilities in measured), strict=True):
        yield _scores(f"new rules after {same[0]['label']}", [tried["score"] for tried in same])


def _written(measured: list[dict[str, Any]]) -> Iterator[str]:
    for name, label in SHARES.items():
        yield line(label, [f"{abilities[name]:.3f}" for abilities in measured])


def _scores(label: str, scores: list[dict[str, Any]]) -> str:
    return line(label, [f"{score['solved']:.3f} ({score['cells']:.3f})" for score in scores])


if __name__ == "__main__":
    main()
