"""`rookery run`: train a teacher on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

from rookery.cli import profiles
from rookery.cli.adapt import Failed
from rookery.cli.options import DEFAULT_SERVER, BatchSize, Epochs, Json, MaxSteps, Rank, Rate, Seed, Server, Targets
from rookery.cli.recipes import KeepName, OptimiserName, RewardName, grader, policy_optimiser, student_recipe
from rookery.cli.render import (
    SELF_EDIT_COLUMNS,
    as_dict,
    console,
    print_json,
    progress,
    run_tables,
    self_edit_row,
    show_list,
    state,
)
from rookery.cli.watching import follow
from rookery.client import Client
from rookery.datasets import holds_tasks, load_dataset, load_lines
from rookery.errors import BadFile
from rookery.tasks import DOMAIN, load_tasks, task_contexts
from rookery.v1.adaptation_service_pb2 import STATE_CANCELLED, STATE_FAILED
from rookery.v1.context_pb2 import Context
from rookery.v1.run_service_pb2 import Run, RunPlan

app = typer.Typer(help="Runs that train a teacher.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="runs/RUN, or RUN alone.")]


def run_name(name: str) -> str:
    return name if name.startswith("runs/") else f"runs/{name}"


def split(contexts: list[Context], *, holdout: float) -> tuple[list[Context], list[Context]]:
    """The last share is held out for measuring; at least one context is left to train on."""
    held = min(round(len(contexts) * holdout), len(contexts) - 1)
    return (contexts[: len(contexts) - held], contexts[len(contexts) - held :]) if held > 0 else (contexts, [])


@app.command("create")
def create(
    dataset: Annotated[
        Path, typer.Option(help="A .json file like squad_val.json, a .jsonl file, a folder of .txt; or ARC's tasks.")
    ],
    solutions: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of tasks: JSON file of the outputs of test inputs, by task."),
    ] = None,
    limit: Annotated[Optional[int], typer.Option(help="Only the first contexts of the data set.")] = None,  # noqa: UP045
    holdout: Annotated[float, typer.Option(help="Share of the contexts, from the end, to measure on.")] = 0.25,
    test_dataset: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Measure on these contexts instead of a share."),
    ] = None,
    teacher: Annotated[str, typer.Option(help="Teacher profile; by default the only one.")] = "",
    student: Annotated[str, typer.Option(help="Student profile; by default the only one.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds of training; 0 only measures.")] = 2,
    style: Annotated[str, typer.Option(help="Prompt of the teacher: implications, rewrite, self-qa, ...")] = "",
    self_edits: Annotated[int, typer.Option(help="Self-edits per context; 0 takes the default.")] = 0,
    seeds: Annotated[int, typer.Option(help="Trials per self-edit; 0 takes the default.")] = 0,
    test_self_edits: Annotated[int, typer.Option(help="Self-edits per test context; 0 takes the default.")] = 0,
    test_every: Annotated[int, typer.Option(help="Measure after every so many rounds, and after the last.")] = 1,
    reward: Annotated[
        Optional[RewardName],  # noqa: UP045
        typer.Option(help="What pays; by default loglik, for tasks exact."),
    ] = None,
    test_grader: Annotated[
        Optional[RewardName],  # noqa: UP045
        typer.Option(help="What contexts to measure on are scored by, and the report; by default what pays."),
    ] = None,
    keep_without_gain: Annotated[bool, typer.Option(help="Keep the best self-edit even if it does not help.")] = False,
    optimiser: Annotated[
        OptimiserName, typer.Option(help="What the teacher learns: the best self-edits, or all by their advantage.")
    ] = OptimiserName.rest_em,
    keep: Annotated[
        Optional[KeepName],  # noqa: UP045
        typer.Option(help="What ReST-EM imitates: the best self-edit that gains, or all; by default as in SEAL."),
    ] = None,
    least_gain: Annotated[
        float, typer.Option(help="What a self-edit must gain, and more, for ReST-EM to imitate it.")
    ] = 0,
    baseline: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Measure this as well, without a teacher; tasks have random and oracle. May be repeated."),
    ] = None,
    control: Annotated[bool, typer.Option(help="Train a second line as if rewards were random.")] = False,
    race: Annotated[
        bool,
        typer.Option("--race", help="Spend trials on self-edits that could still be the best; from 3 seeds on."),
    ] = False,
    race_confidence: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="How sure it must be that a self-edit is behind before it gets no more trials; 0.5 to 1."),
    ] = None,
    redraws: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="How often a blank or repeated self-edit is drawn again."),
    ] = None,
    reward_scale: Annotated[float, typer.Option(help="What a gain is multiplied by.")] = 1,
    reward_clip: Annotated[float, typer.Option(help="Largest gain or loss that counts, after scaling; 0: any.")] = 0,
    weight_change_penalty: Annotated[float, typer.Option(help="Off the reward, per unit of the adapter's norm.")] = 0,
    forgetting_penalty: Annotated[float, typer.Option(help="Off the reward, per nat that --retention loses.")] = 0,
    compute_penalty: Annotated[float, typer.Option(help="Off the reward, per million tokens of training.")] = 0,
    retention: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file of texts, one a line, that should not be forgotten."),
    ] = None,
    rank: Rank = None,
    target: Targets = None,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    batch_size: BatchSize = None,
    max_steps: MaxSteps = None,
    seed: Seed = 0,
    watch: Annotated[bool, typer.Option(help="Follow the run to its end.")] = True,
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """Start a run, and follow it."""
    domain, contexts = _contexts(dataset, solutions)
    contexts = contexts[:limit]
    if test_dataset:
        train, (of, test) = contexts, _contexts(test_dataset, solutions)
        if of != domain:
            raise BadFile(f"{test_dataset} is of the domain {of}, the other file of {domain}", file=str(test_dataset))
    else:
        train, test = split(contexts, holdout=holdout)
    for number, context in enumerate(test, start=0 if test_dataset else len(train)):
        if not context.questions:
            message = f"the contexts to measure on need questions; {context.title!r} has none: see --holdout"
            raise BadFile(message, file=str(test_dataset or dataset), item=str(number))
    plan = RunPlan(
        rounds=rounds,
        style=style,
        self_edits=self_edits,
        seeds=seeds,
        test_self_edits=test_self_edits,
        test_every=test_every,
        reward=grader(reward),
        test_grader=grader(test_grader),
        keep_without_gain=keep_without_gain,
        control=control,
        baselines=baseline,
        optimiser=policy_optimiser(optimiser, keep=keep, least_gain=least_gain),
        student_recipe=student_recipe(
            rank=rank,
            targets=target,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_steps=max_steps,
        ),
        seed=seed,
        seed_allocation=RunPlan.SEED_ALLOCATION_RACE if race else RunPlan.SEED_ALLOCATION_FIXED,
        redraws=redraws,
        race_confidence=race_confidence,
        reward_shape=RunPlan.RewardShape(
            scale=reward_scale,
            clip=reward_clip,
            weight_change=weight_change_penalty,
            forgetting=forgetting_penalty,
            compute=compute_penalty,
        ),
        retention_texts=load_lines(retention) if retention else [],
    )
    with Client(server) as client:
        teacher, student = profiles.choose(client, teacher=teacher, student=student)
        asked = Run(
            teacher=teacher, student=student, domain=domain, train_contexts=train, test_contexts=test, plan=plan
        )
        run = client.create_run(asked)
        if watch:
            follow_run(client, run.name, as_json=json)
        else:
            _show(run, as_json=json)


def _contexts(dataset: Path, solutions: Path | None) -> tuple[str, list[Context]]:
    """Their domain, "" for the default, and the contexts. Raises BadFile."""
    if holds_tasks(dataset):
        return DOMAIN, task_contexts(load_tasks(dataset, solutions), dataset)
    return "", load_dataset(dataset)


@app.command("get")
def get(name: Name, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Show one run."""
    with Client(server) as client:
        _show(client.get_run(run_name(name)), as_json=json)


@app.command("list")
def list_(server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """List all runs, newest first."""
    with Client(server) as client:
        runs = list(client.list_runs())
    rows = [
        (r.name, state(r.state), progress(r.progress), r.teacher, r.student, f"{r.create_time.ToDatetime():%F %T}")
        for r in runs
    ]
    columns = ("name", "state", "progress", "teacher", "student", "created")
    show_list(runs, as_json=json, columns=columns, rows=rows)


@app.command("self-edits")
def self_edits(
    name: Name,
    round_: Annotated[Optional[int], typer.Option("--round", min=0, help="Only those of this round.")] = None,  # noqa: UP045
    server: Server = DEFAULT_SERVER,
    json: Json = False,
) -> None:
    """List what was written in a run and what came of it. With --json texts are whole."""
    with Client(server) as client:
        written = list(client.list_self_edits(run_name(name), round=round_))
    show_list(written, as_json=json, columns=SELF_EDIT_COLUMNS, rows=map(self_edit_row, written))


@app.command("watch")
def watch(name: Name, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Follow a run to its end."""
    with Client(server) as client:
        follow_run(client, run_name(name), as_json=json)


@app.command("cancel")
def cancel(name: Name, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Stop a run."""
    with Client(server) as client:
        _show(client.cancel_run(run_name(name)), as_json=json)


@app.command("pause")
def pause(name: Name, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Start no further job of a run; those that run finish."""
    with Client(server) as client:
        _show(client.pause_run(run_name(name)), as_json=json)


@app.command("resume")
def resume(name: Name, server: Server = DEFAULT_SERVER, json: Json = False) -> None:
    """Go on with a paused run where it was."""
    with Client(server) as client:
        _show(client.resume_run(run_name(name)), as_json=json)


def follow_run(client: Client, name: str, *, as_json: bool) -> Run:
    """To its end, then show it. Raises Failed."""
    follow(client.watch_run(name), as_json=as_json, title=name)
    run = client.get_run(name)
    if run.state in (STATE_FAILED, STATE_CANCELLED):
        raise Failed(run.name, run.failure)
    if not as_json:
        _show(run, as_json=False)
    return run


def _show(run: Run, *, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(run))
        return
    console.print(f"[bold]{run.name}[/] {state(run.state)}: {progress(run.progress)}", highlight=False)
    if run.HasField("failure"):
        console.print(f"[red]{run.failure.reason}[/] {escape(run.failure.message)}", highlight=False)
    for table in run_tables(run):
        console.print(table)
