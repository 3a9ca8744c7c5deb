"""The files that a quickstart leaves: `report.json` and `report.svg`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rookery.v1.run_service_pb2 import Run

BEFORE = "self-edits before RL"
"""The row that stands for round 0 in the plot."""


def write_json(run: Run, path: Path, *, seconds: float) -> None:
    """Rows of the table, comparisons, and how long it took."""
    content = {
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
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
