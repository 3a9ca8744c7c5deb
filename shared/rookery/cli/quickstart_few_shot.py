"""`rookery quickstart-few-shot`: a teacher learns what to practise few-shot tasks by, from nothing to a table."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from rookery.cli.choices import choices, choices_table
from rookery.cli.models import TINY_GRIDS
from rookery.cli.options import DEFAULT_FOLDER, DEFAULT_SERVER, Folder, Json, Seed
from rookery.cli.quickstart import local_cluster, register, unfinished_run
from rookery.cli.render import as_dict, console, duration, print_json
from rookery.cli.report import write_few_shot_svg, write_json
from rookery.cli.runs import follow_run
from rookery.client import Client, Recipe, Sampling
from rookery.tasks import DOMAIN
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER
from rookery.v1.recipe_pb2 import GRADER_EXACT, GRADER_LIKELIHOOD
from rookery.v1.run_service_pb2 import PolicyOptimiser, RestEm, Round, Run, RunPlan

TEACHER = "profiles/grid-teacher"
STUDENT = "profiles/grid-student"
ROUNDS = 2
THREADS = 2
"""Practice takes nearly all of the time, so its process may have both cores."""
LONGEST_CONFIGURATION, LONGEST_ANSWER = 300, 48
DEMONSTRATIONS, TESTS = 2, 1
"""Of a puzzle: with few demonstrations practice is quick, and augmentations matter."""
TOP_P = 0.9
"""One unlikely digit makes a learning rate ten times too high."""
STUDENT_RECIPE = Recipe(
    rank=8,
    alpha=32,
    targets=["gate_proj", "up_proj", "down_proj"],
    warmup_steps=4,
    batch_size=1,
    max_steps=168,
    learning_rate=2e-3,
    epochs=3,
)
"""So few steps are enough for puzzles as small, and trials are quick. On MLPs alone practice teaches more than on all
layers at rank 16: 16 of 20 puzzles of a run's training for 9 to 11, and in less time. Rate and epochs are the oracle's;
configurations have their own."""
LEAST_GAIN = 0.15
"""In probability of the right outputs: rates that change next to nothing gain a little as often as not."""
TEACHER_RECIPE = Recipe(rank=16, alpha=32, targets=["all-linear"], epochs=40, learning_rate=4e-3, batch_size=4)
"""Few configurations gain, so what there is to learn from is small."""


def quickstart_few_shot(
    model: Annotated[
        str, typer.Option(help="A grid model made by rookery_tiny.grids.pretrain; the built-in one.")
    ] = TINY_GRIDS,
    folder: Folder = DEFAULT_FOLDER,
    address: Annotated[str, typer.Option(help="Where the public API listens.")] = DEFAULT_SERVER,
    train: Annotated[int, typer.Option(help="Puzzles to train on in each round.")] = 10,
    test: Annotated[int, typer.Option(help="Puzzles to measure on.")] = 24,
    self_edits: Annotated[int, typer.Option(help="Configurations for each puzzle to train on.")] = 4,
    seed: Seed = 1,
    json: Json = False,
) -> None:
    """Watch a teacher learn what to practise few-shot tasks by: puzzles of grids, as in ARC, whose rules are new."""
    started = time.monotonic()
    with local_cluster(folder, address, quiet=json, threads=THREADS), Client(address) as client:
        register(client, TEACHER, ROLE_TEACHER, model, longest=LONGEST_CONFIGURATION)
        register(client, STUDENT, ROLE_STUDENT, model, longest=LONGEST_ANSWER)
        name = unfinished_run(client, TEACHER)
        if name is None:
            name = client.create_run(few_shot_run(train=train, test=test, self_edits=self_edits, seed=seed)).name
        run = follow_run(client, name, as_json=json)
        measured = [r.index for r in run.rounds if r.purpose == Round.PURPOSE_TEST]
        chosen = {
            when: choices(written.text for written in client.list_self_edits(name, round=index))
            for when, index in (("before RL", measured[0]), ("after RL", measured[-1]))
        }
    seconds = time.monotonic() - started
    write_json(run, folder / "few-shot.json", seconds=seconds, chosen=chosen)
    write_few_shot_svg(run, chosen, folder / "few-shot.svg")
    if json:
        print_json(as_dict(run))
        return
    console.print(choices_table(chosen))
    console.print(f"{duration(seconds)} in all. {folder}/few-shot.json and {folder}/few-shot.svg have the figures.")


def few_shot_run(*, train: int, test: int, self_edits: int, seed: int) -> Run:
    """So many puzzles to train on in each round, and to measure on.

    What makes the right outputs more likely pays; solved puzzles are reported.
    """
    from rookery_shared.wire import context_to_proto
    from rookery_tiny.grids.puzzles import Known, make_contexts

    contexts = make_contexts(Known.TRAIN, ROUNDS * train, seed=seed, demonstrations=DEMONSTRATIONS, tests=TESTS)
    held_out = make_contexts(Known.TEST, test, seed=seed, demonstrations=DEMONSTRATIONS, tests=TESTS)
    return Run(
        teacher=TEACHER,
        student=STUDENT,
        domain=DOMAIN,
        train_contexts=map(context_to_proto, contexts),
        test_contexts=map(context_to_proto, held_out),
        plan=RunPlan(
            rounds=ROUNDS,
            self_edits=self_edits,
            seeds=1,
            test_self_edits=1,
            reward=GRADER_LIKELIHOOD,
            test_grader=GRADER_EXACT,
            test_every=ROUNDS,
            optimiser=PolicyOptimiser(rest_em=RestEm(keep=RestEm.KEEP_BEST, least_gain=LEAST_GAIN)),
            baselines=["random", "oracle"],
            sampling=Sampling(top_p=TOP_P, max_new_tokens=LONGEST_CONFIGURATION),
            student_recipe=STUDENT_RECIPE,
            teacher_recipe=TEACHER_RECIPE,
            seed=seed,
        ),
    )
