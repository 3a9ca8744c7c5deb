"""Following a run or an adaptation: a progress bar on a terminal, a line for each event elsewhere, JSON on request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rookery.cli.render import as_dict, console, duration, print_json
from rookery.v1 import measurement_pb2
from rookery.v1.adaptation_service_pb2 import Adaptation, AdaptationEvent
from rookery.v1.run_service_pb2 import Run, RunEvent

Event = TypeVar("Event", RunEvent, AdaptationEvent)


class _Work(Protocol):
    @property
    def progress(self) -> measurement_pb2.Progress: ...


def follow(events: Iterable[Event], *, as_json: bool, title: str) -> None:
    """Until the events end."""
    if as_json:
        for event in events:
            print_json(as_dict(event))
    elif not console.is_terminal:
        for event in events:
            console.print(
                f"{event.time.ToDatetime():%H:%M:%S} {escape(event.message)}", highlight=False, soft_wrap=True
            )
    else:
        _follow_with_bar(events, title=title)


def _follow_with_bar(events: Iterable[Event], *, title: str) -> None:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} trials"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("[dim]{task.fields[stage]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1, left="", stage="")
        for event in events:
            _advance(bar, task, _work(event))
            if not event.message.endswith("trials done"):
                bar.console.print(
                    f"[dim]{event.time.ToDatetime():%H:%M:%S}[/] {escape(event.message)}", highlight=False
                )


def _work(event: RunEvent | AdaptationEvent) -> Run | Adaptation:
    return event.run if isinstance(event, RunEvent) else event.adaptation


def _advance(bar: Progress, task: TaskID, work: _Work) -> None:
    progress = work.progress
    left = f"about {duration(progress.eta.seconds)} left" if progress.HasField("eta") else ""
    bar.update(
        task, completed=progress.trials_done, total=max(1, progress.trials_total), left=left, stage=progress.stage
    )
