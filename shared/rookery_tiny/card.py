"""Write the model card: `python -m rookery_tiny.card FOLDER OTHER_SEED_FOLDER...`.

Each folder holds a model with its `abilities.json`, and `report.json` of a quickstart that used it. The card goes into
the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

from rookery_tiny.abilities import Abilities

TEXT = """---
library_name: transformers
license: apache-2.0
---

# The tiny model

A Qwen2 of {parameters:.2f} million parameters, made from nothing by `python -m rookery_tiny.pretrain` in a quarter of
an hour on two CPU cores. It reads passages about invented people and companies, answers questions on those that it has
learned, and writes self-edits in several styles, good and bad, so that the whole SEAL loop can be watched on a laptop.
It knows nothing of the real world, and is of no use outside of demonstrations and tests.

Every passage tells of two subjects of one kind, and every question is asked of both: a fact counts only if it is bound
to the right name. A third of the questions ask for both at once. The surnames of pre-training, of a run's training
contexts and of its test contexts are three disjoint sets.

How the styles are mixed decides how much there is for reinforcement learning to find; the mixture was chosen for the
demonstration (`documents.py` says how). That the untrained teacher does better than the passage alone is arranged; that
training the teacher helps, and training it on random choices does not, is found.

## What it can do

Measured by `python -m rookery_tiny.abilities`, for pre-training seeds {seeds}. The weights shipped are those of seed
{shipped}. Shares of test questions answered exactly right, unless said otherwise.

| ability | {columns} |
|---|{rules}|
{abilities}

The order of the abilities is the same for every seed; their size is not. Seed 0 was still learning to copy from its
context when the first of the two phases ended; seeds 1 and 2 had learned it by then, and read less well afterwards.

## What a teacher learns with it

`rookery quickstart`: {rounds}. Means over {contexts} test contexts,
with standard errors; nothing was chosen on them. Settings were chosen with the weights that are shipped, on other
contexts; the other seeds ran with the same.

| row | {columns} |
|---|{rules}|
{report}
"""
LABELS = {
    "known_asked": "knows what it was asked about in pre-training",
    "known_told": "knows what it was told in pre-training and never asked",
    "unknown": "answers about entities that it never met",
    "lines_true": "lines of its self-edits that are true",
    "facts_covered": "facts of a passage that a self-edit states by name",
    "learned_passage": "learns from a passage alone",
    "learned_vague": "learns from a passage and vague lines",
    "learned_nameless": "learns from a passage and all facts without names",
    "learned_named": "learns from a passage and all facts with names",
    "learned_questions": "learns from a passage and all facts as questions",
    "learned_questions_joint": "of these, questions that ask of both subjects",
    "swapped": "of these, plain questions answered with the other's fact",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    folders: list[Path] = parser.parse_args().folders
    abilities = [_read(folder / "abilities.json") for folder in folders]
    reports = [_read(folder / "report.json") for folder in folders]
    (folders[0] / "README.md").write_text(card(abilities, reports))


def card(abilities: list[dict[str, Any]], reports: list[dict[str, Any]]) -> str:
    """The card's text."""
    seeds = [str(measured["seed"]) for measured in abilities]
    rows = [{row["name"]: row for row in report["rows"]} for report in reports]
    return TEXT.format(
        parameters=abilities[0]["parameters"] / 1e6,
        seeds=", ".join(seeds),
        shipped=seeds[0],
        columns=" | ".join(f"seed {seed}" for seed in seeds),
        rules="|".join("---" for _ in seeds),
        abilities="\n".join(
            line(LABELS[field.name], [f"{measured[field.name]:.3f}" for measured in abilities])
            for field in fields(Abilities)
        ),
        rounds="two rounds of ReST-EM; control, the same updates on a random self-edit of each context",
        contexts=statistics.mode(row["n"] for row in rows[0].values()),
        report="\n".join(
            line(name, [f"{row[name]['mean']:.3f} ± {row[name]['stderr']:.3f}" for row in rows]) for name in rows[0]
        ),
    )


def line(name: str, cells: list[str]) -> str:
    """Of a table."""
    return f"| {name} | {' | '.join(cells)} |"


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


if __name__ == "__main__":
    main()
