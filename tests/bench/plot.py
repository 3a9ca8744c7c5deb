"""A table and a plot of a result of `tests.bench.training`.

    python -m tests.bench.plot tests/bench/results/training-cpu.json

Writes the plot beside the file, as SVG, and prints the tables as Markdown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "rookery"  # the same file for the same figures
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from tests.bench.training import OURS, PADDED  # noqa: E402


def slots(name: str) -> int:
    return int(name.removeprefix(OURS))


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"


def tables(result: dict[str, Any]) -> Iterator[str]:
    head = (
        "model",
        "precision",
        "tokens",
        "contender",
        "adapters/h",
        "real tokens/s",
        "ratio",
        "of matmul peak",
        "loss",
    )
    compared = result["contenders"] + result.get("sizes", []) + result.get("lengths", [])
    yield from markdown(
        head,
        [
            (
                part["shape"],
                part["dtype"],
                part["tokens_per_sequence"],
                name,
                f"{row['adapters_per_hour']:,}",
                f"{row['real_tokens_per_second']:,}",
                f"{row['ratio']:.2f}",
                f"{row['share_of_matmul_peak']:.1%}",
                row["last_loss"],
            )
            for part in compared
            for name, row in part["contenders"].items()
        ],
    )
    yield ""
    keys = ("adapters", "base_mib", "adapters_mib", "pass_mib", "predicted_mib", "measured_mib")
    yield from markdown(
        ("N", "base MiB", "adapters MiB", "pass MiB", "predicted", "measured"),
        [[row[key] for key in keys] for row in result["memory"]],
    )
    yield ""
    kinds = list(result["profile"][0]["shares"])
    rows = [[kind, *(f"{part['shares'][kind]:.0%}" for part in result["profile"])] for kind in kinds]
    yield from markdown(["time of ours at N=32", *(part["dtype"] for part in result["profile"])], rows)


def draw(result: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    _against_slots(axes[0, 0], result["contenders"])
    points = [part for part in result["contenders"] if part["dtype"] == result["contenders"][-1]["dtype"]]
    _against(axes[0, 1], points + result.get("lengths", []), "tokens_per_sequence", "tokens in a sequence")
    _against(axes[1, 0], points + result.get("sizes", []), "weights", "weights of the model")
    _memory(axes[1, 1], result["memory"])
    figure.suptitle(f"{result['machine']['device']}, {result['machine']['threads']} threads; {result['data']}", size=9)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _against_slots(axes: Axes, parts: Sequence[dict[str, Any]]) -> None:
    for part, colour in zip(parts, ("C0", "C1"), strict=False):
        rows = part["contenders"]
        sizes = [slots(name) for name in rows if name.startswith(OURS)]
        rates = [rows[f"{OURS}{n}"]["adapters_per_hour"] for n in sizes]
        axes.plot(sizes, rates, "o-", color=colour, label=f"ours, {part['dtype']}")
        for name, style in ((part["compared_with"], "--"), (PADDED, ":")):
            if name in rows:
                rate = rows[name]["adapters_per_hour"]
                axes.axhline(rate, color=colour, linestyle=style, label=f"{name}, {part['dtype']}")
    axes.set(xscale="log", yscale="log", xlabel="adapters at once, N", ylabel="adapters an hour")
    axes.legend(fontsize=7)


def _against(axes: Axes, parts: Sequence[dict[str, Any]], key: str, label: str) -> None:
    parts = sorted(parts, key=lambda part: part[key])
    places = [part[key] for part in parts]
    shared = set.intersection(*({name for name in part["contenders"] if name.startswith(OURS)} for part in parts))
    ours = max(shared, key=slots)
    lines = {ours: [ours] * len(parts), "sequential": [part["compared_with"] for part in parts]}
    for name, rows in lines.items():
        speeds = [part["contenders"][row]["real_tokens_per_second"] for part, row in zip(parts, rows, strict=True)]
        axes.plot(places, speeds, "o-", label=f"{name}, {parts[0]['dtype']}")
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="real tokens a second")
    axes.legend(fontsize=7)


def _memory(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    sizes = [row["adapters"] for row in rows]
    axes.plot(sizes, [row["predicted_mib"] for row in rows], "o--", label="predicted")
    axes.plot(sizes, [row["measured_mib"] for row in rows], "s-", label="measured")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="adapters at once, N",
        ylabel=f"peak beside the base, MiB ({rows[0]['shape']})",
    )
    axes.legend(fontsize=7)


def main() -> None:
    path = Path(sys.argv[1])
    result = json.loads(path.read_text())
    draw(result, path.with_suffix(".svg"))
    print("\n".join(tables(result)))


if __name__ == "__main__":
    main()
