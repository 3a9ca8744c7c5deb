"""The files that a quickstart leaves: `report.json` and `report.svg`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rookery.cli.preferences import Preferences
from rookery.v1.run_service_pb2 import Run

BEFORE = "self-edits before RL"
"""The row that stands for round 0 in the plot."""
PRACTICE_ALONE = "passage only"
"""Of tasks: practice without a configuration, at the run's own settings."""


def write_json(run: Run, path: Path, *, seconds: float) -> None:
    """Rows of the table, comparisons, and how long it took."""
    path.write_text(json.dumps(_content(run, seconds), indent=2) + "\n", encoding="utf-8")


def write_few_shot_json(run: Run, chosen: Mapping[str, Preferences], path: Path, *, seconds: float) -> None:
    """As `write_json`, with what the teacher chooses, before and after."""
    preferences = {when: asdict(each) for when, each in chosen.items()}
    path.write_text(
        json.dumps({**_content(run, seconds), "preferences": preferences}, indent=2) + "\n", encoding="utf-8"
    )


def _content(run: Run, seconds: float) -> dict[str, Any]:
    return {
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


def write_few_shot_svg(run: Run, chosen: Mapping[str, Preferences], path: Path) -> None:
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
    width = 0.8 / len(chosen)
    for number, (when, each) in enumerate(chosen.items()):
        counted = {**each.groups, "loss on\noutputs": each.outputs_only}
        shares.bar([i + number * width for i in range(len(counted))], [*counted.values()], width, label=when)
        shares.set_xticks([i + 0.4 - width / 2 for i in range(len(counted))], [*counted])
        x, x_error = _middle(each.learning_rates)
        y, y_error = _middle(each.epochs)
        rates.errorbar([x], [y], xerr=x_error, yerr=y_error, marker="o", capsize=4, label=when)
    shares.set_ylabel("share of configurations")
    shares.legend(frameon=False)
    rates.set_xscale("log")
    rates.set_xlabel("learning rate, median and quartiles")
    rates.set_ylabel("epochs")
    figure.savefig(path)
    pyplot.close(figure)


def _middle(quartiles: tuple[float, float, float]) -> tuple[float, list[list[float]]]:
    """The median, and how far below and above it the others are."""
    low, middle, high = quartiles
    return middle, [[middle - low], [high - middle]]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
