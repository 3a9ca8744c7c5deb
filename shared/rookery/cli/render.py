"""How things look on a terminal, and as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rookery.v1.adaptation_service_pb2 import State
from rookery.v1.measurement_pb2 import Comparison, Measurement, Progress
from rookery.v1.run_service_pb2 import Round, Run, SelfEdit

SELF_EDIT_COLUMNS = ("round", "context", "", "trials", "reward", "gain", "kept", "text")
MOST_SHOWN = 80
"""Characters of a text in a table."""
console = Console(width=None if sys.stdout.isatty() else 200)
"""Into a pipe or a file it writes wide lines, so that names stay whole."""


def as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def print_json(content: Any) -> None:
    print(json.dumps(content, ensure_ascii=False), flush=True)


def show(message: Message, *, as_json: bool, lines: Sequence[tuple[str, str]]) -> None:
    """One resource: as JSON, or as a list of names and values."""
    if as_json:
        print_json(as_dict(message))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in lines:
        table.add_row(f"[dim]{name}[/]", value)
    console.print(table)


def show_list(
    messages: Iterable[Message], *, as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Many resources: as JSON, or as a table."""
    if as_json:
        print_json([as_dict(message) for message in messages])
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def state(value: State.ValueType) -> str:
    return State.Name(value).removeprefix("STATE_").lower()


def purpose(value: Round.Purpose.ValueType) -> str:
    return Round.Purpose.Name(value).removeprefix("PURPOSE_").lower()


def plus_minus(measured: Measurement) -> str:
    """The mean and its standard error, such as "0.431 ± 0.030"."""
    if math.isnan(measured.standard_error):
        return f"{measured.mean:.3f}"
    return f"{measured.mean:.3f} ± {measured.standard_error:.3f}"


def progress(value: Progress) -> str:
    """Such as "120 of 912 trials (1 failed), train, evaluate, about 2 min left"."""
    failed = f" ({value.trials_failed} failed)" if value.trials_failed else ""
    text = f"{value.trials_done} of {value.trials_total} trials{failed}, {value.stage}"
    if value.HasField("eta") and value.trials_done < value.trials_total:
        text += f", about {duration(value.eta.seconds)} left"
    return text


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def run_tables(run: Run) -> list[Table]:
    """What a run measured, against what it began with, and what its rounds did."""
    tables = [_measurements(run)] if run.measurements else []
    return [*tables, _rounds(run)]


def _measurements(run: Run) -> Table:
    table = Table(title="On the test contexts", title_justify="left", title_style="bold")
    for column in ("", "score", "contexts", "compared with", "difference", "p"):
        table.add_column(column, justify="left" if column in ("", "compared with") else "right")
    compared = {c.second: c for c in run.comparisons}
    for measured in run.measurements:
        table.add_row(measured.name, plus_minus(measured), str(measured.n), *_comparison(compared.get(measured.name)))
    return table


def _comparison(compared: Comparison | None) -> tuple[str, str, str]:
    if compared is None:
        return ("", "", "")
    p_value = "" if math.isnan(compared.p_value) else _p(compared.p_value)
    return (compared.first, f"{compared.mean_difference:+.3f} ± {compared.standard_error:.3f}", p_value)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _rounds(run: Run) -> Table:
    table = Table(title="Rounds", title_justify="left", title_style="bold")
    for column in ("", "for", "state", "policy", "makes", "self-edits", "trials", "kept", "gain"):
        table.add_column(column, justify="right" if column in ("self-edits", "trials", "kept", "gain") else "left")
    for round_ in run.rounds:
        notes = [(round_.trials_failed, "failed"), (round_.trials_refused, "of no use")]
        note = ", ".join(f"{count} {what}" for count, what in notes if count)
        table.add_row(
            str(round_.index),
            purpose(round_.purpose),
            state(round_.state) if round_.state else "waiting",
            _version(round_.policy),
            _version(round_.next_policy),
            str(round_.self_edits),
            f"{round_.trials_done}/{round_.trials_total}" + (f" ({note})" if note else ""),
            str(round_.kept) if round_.kept else "",
            plus_minus(round_.gain) if round_.HasField("gain") else "",
        )
    return table


def _version(policy: str) -> str:
    return policy.rsplit("/", 1)[-1] if policy else ""


def self_edit_row(written: SelfEdit) -> tuple[str, ...]:
    """As `SELF_EDIT_COLUMNS` has it: trials by their states, a fault under the text."""
    states = Counter(SelfEdit.Trial.State.Name(trial.state) for trial in written.trials)
    text = _short(written.text)
    return (
        str(written.round),
        escape(written.context),
        str(written.index),
        ", ".join(f"{count} {name.removeprefix('STATE_').lower()}" for name, count in states.items()),
        f"{written.reward:.3f}" if written.HasField("reward") else "",
        f"{written.gain:+.3f}" if written.HasField("gain") else "",
        "yes" if written.kept else "",
        escape(f"{text}\nof no use: {_short(written.fault)}" if written.fault else text),
    )


def _short(text: str) -> str:
    """In one line, of what can be printed."""
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 1] + "…"
