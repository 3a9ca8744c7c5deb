"""`rookery quickstart`: the whole loop on the built-in tiny model, from nothing to a table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rookery.cli.models import TINY, ensure_profile, resolve_source
from rookery.cli.options import DEFAULT_FOLDER, DEFAULT_SERVER, Folder, Json, Seed
from rookery.cli.render import as_dict, console, duration, print_json
from rookery.cli.report import write_json, write_svg
from rookery.cli.runs import follow_run
from rookery.cli.up import require_local
from rookery.client import Client, Recipe, Sampling
from rookery.v1.adaptation_service_pb2 import STATE_RUNNING
from rookery.v1.context_pb2 import Context, Question
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER, Limits, ModelSource, Profile, Role
from rookery.v1.recipe_pb2 import GRADER_EXACT
from rookery.v1.run_service_pb2 import Run, RunPlan

if TYPE_CHECKING:
    from rookery_tiny.contexts import WorldContext

TEACHER = "profiles/tiny-teacher"
STUDENT = "profiles/tiny-student"
ROUNDS = 2
STUDENT_RECIPE = Recipe(rank=16, alpha=32, targets=["all-linear"], epochs=10, learning_rate=5e-3, batch_size=3)
TEACHER_RECIPE = Recipe(rank=16, alpha=32, targets=["all-linear"], epochs=6, learning_rate=4e-3, batch_size=8)
"""Chosen on contexts of other entities than those that a quickstart measures on. So was sampling from all of the
teacher's distribution: cut to a nucleus, it would sharpen with every update, the control's too."""


def quickstart(
    folder: Folder = DEFAULT_FOLDER,
    address: Annotated[str, typer.Option(help="Where the public API listens.")] = DEFAULT_SERVER,
    model: Annotated[str, typer.Option(help="A tiny model made by rookery_tiny.pretrain; the built-in one.")] = TINY,
    train: Annotated[int, typer.Option(help="Contexts to train on in each round.")] = 32,
    test: Annotated[int, typer.Option(help="Contexts to measure on.")] = 48,
    engine: Annotated[str, typer.Option(help="Inference engine of teacher and evaluator: transformers, vllm.")] = "",
    own_questions: Annotated[
        bool, typer.Option("--own-questions", help="Hide the questions of the train contexts; the teacher writes some.")
    ] = False,
    seed: Seed = 1,
    json: Json = False,
) -> None:
    """Watch a teacher learn to write better self-edits: all services, two rounds of ReST-EM, a report."""
    started = time.monotonic()
    with local_cluster(folder, address, quiet=json), Client(address) as client:
        teacher, student = (f"{name}-{engine}" if engine else name for name in (TEACHER, STUDENT))
        register(client, teacher, ROLE_TEACHER, model, engine=engine)
        register(client, student, ROLE_STUDENT, model, engine=engine)
        name = unfinished_run(client, teacher)
        if name is None:
            run = quickstart_run(teacher, student, train=train, test=test, own_questions=own_questions, seed=seed)
            name = client.create_run(run).name
        run = follow_run(client, name, as_json=json)
    seconds = time.monotonic() - started
    write_json(run, folder / "report.json", seconds=seconds)
    write_svg(run, folder / "report.svg")
    if json:
        print_json(as_dict(run))
        return
    console.print(f"{duration(seconds)} in all. {folder}/report.json and {folder}/report.svg have the figures.")
    console.print(
        "Next: `rookery up` in one terminal, `rookery adapt --passage FILE --questions FILE` in another.",
        highlight=False,
    )


@contextmanager
def local_cluster(folder: Path, address: str, *, quiet: bool, threads: int = 1) -> Iterator[None]:
    """All services for as long as the block lasts; their output goes to files. `threads` are those of each process."""
    require_local()
    from rookery.local.cluster import Cluster
    from rookery.local.logs import LogView

    cluster = Cluster(folder, address=address, sink=LogView(folder / "logs", None), torch_threads=threads)
    if not quiet:
        console.print(f"Starting all services on this machine; their logs are in {folder}/logs.", highlight=False)
    cluster.start()
    try:
        yield
    finally:
        cluster.stop()


def register(
    client: Client, name: str, role: Role.ValueType, model: str, *, engine: str = "", longest: int | None = None
) -> None:
    """A profile of a tiny model, unless it is there already. A teacher starts from its base model again.

    Raises CallFailed, NAME_TAKEN, if there is another of that name.
    """
    if longest is None:
        longest = 256 if role == ROLE_TEACHER else 16  # a self-edit, an answer
    limits = Limits(max_new_tokens=longest, max_lora_rank=64, trials_per_job=16)
    profile = Profile(
        name=name, role=role, model=ModelSource(source=resolve_source(model)), engine=engine, limits=limits
    )
    ensure_profile(client, profile)
    if role == ROLE_TEACHER:
        client.set_active_policy(f"{name}/policies/0")


def unfinished_run(client: Client, teacher: str) -> str | None:
    """A quickstart that was stopped half-way is taken up again."""
    return next((r.name for r in client.list_runs() if r.state == STATE_RUNNING and r.teacher == teacher), None)


def quickstart_run(teacher: str, student: str, *, train: int, test: int, own_questions: bool = False, seed: int) -> Run:
    """With so many contexts to train on in each round, and to measure on."""
    from rookery_tiny.contexts import make_contexts
    from rookery_tiny.world import Surnames

    train_contexts = as_messages(make_contexts(Surnames.TRAIN, ROUNDS * train, seed=seed))
    if own_questions:
        for context in train_contexts:
            context.ClearField("questions")
    return Run(
        teacher=teacher,
        student=student,
        train_contexts=train_contexts,
        test_contexts=as_messages(make_contexts(Surnames.TEST, test, seed=seed)),
        plan=RunPlan(
            rounds=ROUNDS,
            self_edits=5,
            seeds=1,
            test_self_edits=1,
            reward=GRADER_EXACT,
            control=True,
            sampling=Sampling(top_p=1.0, max_new_tokens=256),
            student_recipe=STUDENT_RECIPE,
            teacher_recipe=TEACHER_RECIPE,
            seed=seed,
        ),
    )


def as_messages(contexts: Iterable[WorldContext]) -> list[Context]:
    return [
        Context(
            title=c.title,
            passage=c.passage,
            questions=[Question(question=q.question, answer=q.answer) for q in c.questions],
        )
        for c in contexts
    ]
