"""`rookery adapt`: one text in, one adapter out, with its answers before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from rookery.cli import profiles
from rookery.cli.options import DEFAULT_SERVER, BatchSize, Epochs, Json, MaxSteps, Rank, Rate, Seed, Server, Targets
from rookery.cli.recipes import RewardName, grader, student_recipe
from rookery.cli.render import as_dict, console, plus_minus, print_json
from rookery.cli.watching import follow
from rookery.client import Client
from rookery.datasets import load_questions, read_text
from rookery.errors import BadFile, RookeryError
from rookery.tasks import DOMAIN, load_tasks, task_contexts
from rookery.v1.adaptation_service_pb2 import STATE_SUCCEEDED, Adaptation, Failure
from rookery.v1.context_pb2 import Context


class Failed(RookeryError):
    """The run or adaptation ended without a result; `reason` is its own."""

    def __init__(self, name: str, failure: Failure) -> None:
        super().__init__(f"{name}: {failure.message or 'it was cancelled'}", name=name)
        self.reason = failure.reason or "CANCELLED"  # type: ignore[misc]  # each ended for a reason of its own


def adapt(
    passage: Annotated[
        Optional[Path],  # noqa: UP045  # typer reads it
        typer.Option(help="The text to learn, a UTF-8 file."),
    ] = None,
    task: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Instead of a text: a task as ARC writes it, a JSON file of demonstrations and test inputs."),
    ] = None,
    solutions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="JSON file of the outputs of test inputs, by task."),
    ] = None,
    name: Annotated[str, typer.Option(help="Which task of a file of many.")] = "",
    questions: Annotated[
        Path | None, typer.Option(help='JSON list of {"question", "answer"}; without it, the teacher writes some.')
    ] = None,
    title: Annotated[str, typer.Option(help="What the text is about; by default the file's name.")] = "",
    teacher: Annotated[str, typer.Option(help="Teacher profile; by default the only one.")] = "",
    student: Annotated[str, typer.Option(help="Student profile; by default the only one.")] = "",
    self_edits: Annotated[int, typer.Option(help="Self-edits to try; 0 takes the default.")] = 0,
    seeds: Annotated[int, typer.Option(help="Trials of each self-edit; 0 takes the default.")] = 0,
    reward: Annotated[
        Optional[RewardName],  # noqa: UP045
        typer.Option(help="What pays; by default loglik, for a task exact."),
    ] = None,
    rank: Rank = None,
    target: Targets = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    batch_size: BatchSize = None,
    max_steps: MaxSteps = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Download the adapter into this folder.")] = None,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Adapt the student to one text or task and show its answers before and after."""
    context = _context(passage, questions, task, solutions, name)
    recipe = student_recipe(
        rank=rank,
        targets=target,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_steps=max_steps,
    )
    with Client(server) as client:
        teacher, student = profiles.choose(client, teacher=teacher, student=student)
        adaptation = client.create_adaptation(
            teacher=teacher,
            student=student,
            domain=DOMAIN if task else "",
            title=title or context.title,
            passage=context.passage,
            questions=context.questions,
            demonstrations=context.demonstrations,
            self_edits=self_edits,
            seeds=seeds,
            reward=grader(reward),
            recipe=recipe,
            seed=seed,
        )
        if not json:
            follow(client.watch_adaptation(adaptation.name), as_json=False, title=adaptation.name)
        else:
            for _ in client.watch_adaptation(adaptation.name):
                pass
        adaptation = client.get_adaptation(adaptation.name)
        if adaptation.state != STATE_SUCCEEDED:
            raise Failed(adaptation.name, adaptation.failure)
        if out is not None:
            client.download_adapter(adaptation.adapter, out)
    if json:
        print_json(as_dict(adaptation))
    else:
        _show(adaptation, out)


def _context(
    passage: Path | None, questions: Path | None, task: Path | None, solutions: Path | None, name: str
) -> Context:
    """What is to be learned. Raises BadFile."""
    if (passage is None) == (task is None):
        raise typer.BadParameter("give one of --passage and --task")
    if passage is not None:
        asked = load_questions(questions) if questions else []
        return Context(title=passage.stem.replace("_", " "), passage=read_text(passage), questions=asked)
    assert task is not None
    tasks = load_tasks(task, solutions)
    found = [one for one in tasks if one.name == name] if name else tasks
    if len(found) != 1:
        what = f"no task {name}" if name else f"{len(tasks)} tasks; say which with --name"
        raise BadFile(f"{task} has {what}", file=str(task))
    return task_contexts(found, task)[0]


def _show(adaptation: Adaptation, out: Path | None) -> None:
    table = Table(title="Answers without the text", title_justify="left", title_style="bold")
    for column in ("question", "gold", "before", "after", "score before", "score after"):
        table.add_column(column, justify="right" if column.startswith("score") else "left")
    for answer in adaptation.answers:
        scores = (f"{answer.score_before:.3f}", f"{answer.score_after:.3f}")
        table.add_row(answer.question, answer.gold, answer.before, answer.after, *scores)
    console.print(table)
    console.print(f"gain {plus_minus(adaptation.gain)} over {adaptation.gain.n} trials", highlight=False)
    console.print(adaptation.adapter, highlight=False)
    if out is not None:
        console.print(f"downloaded to {out}", highlight=False)
