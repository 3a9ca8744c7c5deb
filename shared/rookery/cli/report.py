"""The files that a quickstart leaves: figures in JSON and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rookery.cli.choices import Choices, Quartiles
from rookery.v1.run_service_pb2 import Run

BEFORE = "self-edits before RL"
"""The row that stands for round 0 in the plot."""
PRACTICE_ALONE = "passage only"
"""Of tasks: practice without a configuration, at the run's own settings."""


def write_json(run: Run, path: Path, *, seconds: float, chosen: Mapping[str, Choices | None] | None = None) -> None:
    """Rows of the table, comparisons, how long it took; and what the teacher chose, before and after."""
    content: dict[str, Any] = {
        "run": run.name,
        "seconds": round(seconds, 1),
        "rows": [
            {"name": m.name, "mean": m.mean, "stderr": _number(m.standard_error), "n": m.n} for m in run.measurements
        ],
        "comparisons": [
            {
                "first": c.first,
                "second": c.second,
                "mean_difference": c.mean_difference,
                "stderr": _number(c.standard_error),
                "p_value": _number(c.p_value),
                "n": c.n,
            }
            for c in run.comparisons
        ],
    }
    if chosen:
        content["choices"] = {when: asdict(each) if each else None for when, each in chosen.items()}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_svg(run: Run, path: Path) -> None:
    """The score of the policies over the rounds, with what it is to be compared with."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    measured = {m.name: m for m in run.measurements}
    line = [m for name, m in measured.items() if name == BEFORE or name.startswith("after round")]
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    errors = [_number(m.standard_error) or 0.0 for m in line]
    axes.errorbar(range(len(line)), [m.mean for m in line], yerr=errors, marker="o", capsize=4, label="self-edits")
    if "control" in measured and line:
        control = measured["control"]
        error = _number(control.standard_error) or 0.0
        axes.errorbar(
            [len(line) - 1], [control.mean], yerr=[error], marker="s", capsize=4, color="0.5", label="control"
        )
    for name, style in (("passage only", "--"), ("base", ":")):
        if name in measured:
            axes.axhline(measured[name].mean, linestyle=style, color="0.4", label=name)
    axes.set_xticks(range(len(line)), ["before RL", *(f"round {i}" for i in range(1, len(line)))])
    axes.set_ylabel("score on the test contexts")
    axes.legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def write_few_shot_svg(run: Run, chosen: Mapping[str, Choices | None], path: Path) -> None:
    """The rows of the report, and which configurations the teacher came to prefer."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (scores, shares, rates) = pyplot.subplots(
        1, 3, figsize=(11.0, 4.0), layout="constrained", width_ratios=(3, 3, 2)
    )
    rows = [m for m in run.measurements if m.name != PRACTICE_ALONE]
    errors = [_number(m.standard_error) or 0.0 for m in rows]
    scores.barh([m.name for m in rows], [m.mean for m in rows], xerr=errors, color="0.6", capsize=3)
    scores.invert_yaxis()
    scores.set_xlabel("share of the test puzzles solved")
    known = {when: each for when, each in chosen.items() if each}
    for number, (when, each) in enumerate(known.items()):
        counted = {**each.groups, "loss on\noutputs": each.outputs_only}
        width = 0.8 / len(known)
        shares.bar([i + number * width for i in range(len(counted))], [*counted.values()], width, label=when)
        shares.set_xticks([i + 0.4 - width / 2 for i in range(len(counted))], [*counted])
        x, x_error = _middle(each.learning_rate)
        y, y_error = _middle(each.epochs)
        rates.errorbar([x], [y], xerr=x_error, yerr=y_error, marker="o", capsize=4, label=when)
    shares.set_ylabel("share of configurations")
    shares.legend(frameon=False)
    rates.set_xscale("log")
    rates.set_xlabel("learning rate, median and quartiles")
    rates.set_ylabel("epochs")
    figure.savefig(path)
    pyplot.close(figure)


def _middle(quartiles: Quartiles) -> tuple[float, list[list[float]]]:
    """The median, and how far below and above it the others are."""
    low, middle, high = quartiles
    return middle, [[middle - low], [high - middle]]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
