"""Students at work: what they share, what they keep when they are killed, and how soon they stop."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from rookery.cli.quickstart import STUDENT_RECIPE, as_messages
from rookery.v1.adaptation_service_pb2 import STATE_CANCELLED, Adaptation
from rookery.v1.recipe_pb2 import SCHEDULE_CONSTANT
from rookery.v1.run_service_pb2 import Run
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.adapters import relative_difference
from tests.e2e.conftest import running_system
from tests.e2e.systems import System, finish, kill, small_run
from tests.waiting import wait_until

HEARTBEAT = 2.0
"""A third of a test's lease: how long the coordinator's word takes to a worker, at most."""


@pytest.fixture(scope="module")
def watchful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Students that write a checkpoint after every epoch."""
    with running_system(tmp_path_factory.mktemp("watchful"), ROOKERY_CHECKPOINT_SECONDS="0") as started:
        yield started


def long_run(*, epochs: int, seed: int) -> Run:
    """Of texts that are the same in whatever company the teacher writes them: the likeliest of each context."""
    run = small_run(contexts=8, test=0, rounds=1, seed=seed)
    run.plan.self_edits = 1
    run.plan.sampling.temperature = 0.0
    run.plan.student_recipe.epochs = epochs
    run.plan.student_recipe.learning_rate = 1e-3
    run.plan.student_recipe.schedule = SCHEDULE_CONSTANT
    return run


def unfinished(system: System) -> list[Path]:
    folder = system.cluster.folder / "objects" / "unfinished"
    return [path for path in folder.rglob("*.safetensors") if not path.name.startswith(".")]


def student_log(system: System) -> str:
    return "".join(path.read_text() for path in (system.cluster.folder / "logs").glob("student-*"))


def adapters_of(system: System, run: str, folder: Path) -> dict[tuple[float, ...], Path]:
    """Folders of a run's adapters, by what tells them apart: how many tokens were trained on, and the first losses."""
    made = [adapter for adapter in system.client.list_adapters(system.student) if adapter.parent == run]
    assert not any(adapter.training.losses for adapter in made), "lists stay short, however long the training"
    full = [system.client.get_adapter(adapter.name) for adapter in made]
    folders = {
        (
            adapter.training.tokens,
            *(round(loss, 3) for loss in adapter.training.losses[:3]),
        ): system.client.download_adapter(adapter.name, folder / adapter.name.replace("/", "-"))
        for adapter in full
    }
    assert len(folders) == len(made)
    return folders


def test_a_killed_batch_goes_on_from_its_checkpoints(watchful: System, system: System, tmp_path: Path) -> None:
    """kill -9 with every adapter of the batch in the middle: the adapters are those of an undisturbed run."""
    epochs = 40
    run = watchful.client.create_run(long_run(epochs=epochs, seed=7)).name
    wait_until(lambda: len(unfinished(watchful)) >= 4, seconds=60, what="checkpoints of half of the batch")
    kill(watchful, "student-" + watchful.student.removeprefix("profiles/"))
    finish(watchful.client, run)
    assert re.search(rf"goes on after epoch \d+ of {epochs}\b", student_log(watchful)), "it says where it goes on"
    wait_until(lambda: not unfinished(watchful), seconds=10, what="nothing left of it")

    undisturbed = system.client.create_run(long_run(epochs=epochs, seed=7)).name
    finish(system.client, undisturbed)
    ours = adapters_of(watchful, run, tmp_path / "killed")
    theirs = adapters_of(system, undisturbed, tmp_path / "undisturbed")
    assert ours.keys() == theirs.keys(), "trained on other texts"
    assert len(ours) >= 8
    differences = {key: relative_difference(folder, theirs[key]) for key, folder in ours.items()}
    assert max(differences.values()) < 1e-3, differences


def test_cancelling_stops_the_training_loop_within_a_step(watchful: System) -> None:
    """The word comes with a heartbeat; a step of this batch takes a fraction of a second."""
    run = watchful.client.create_run(long_run(epochs=1000, seed=8)).name
    wait_until(lambda: unfinished(watchful), seconds=60, what="training")
    assert watchful.client.cancel_run(run).state == STATE_CANCELLED
    wait_until(lambda: "reason=CANCELLED" in student_log(watchful), seconds=HEARTBEAT + 1.0, what="the student stops")
    wait_until(lambda: not unfinished(watchful), seconds=5, what="nothing left of it")


def test_adaptations_that_arrive_together_share_a_batch(watchful: System) -> None:
    contexts = as_messages(make_contexts(Surnames.TEST, 3, seed=5))
    recipe = type(STUDENT_RECIPE)()
    recipe.CopyFrom(STUDENT_RECIPE)
    recipe.epochs = 20
    names = [
        watchful.client.create_adaptation(
            teacher=watchful.teacher,
            student=watchful.student,
            title=context.title,
            passage=context.passage,
            questions=context.questions,
            recipe=recipe,
        ).name
        for context in contexts
    ]
    ended: list[Adaptation] = [[*watchful.client.watch_adaptation(name)][-1].adaptation for name in names]
    assert all(adaptation.adapter for adaptation in ended)
    url = f"sqlite:///{watchful.cluster.folder}/rookery.db"
    with create_engine(url).connect() as connection:
        query = text(
            "SELECT parent, start_time, end_time FROM jobs WHERE kind = 'train' AND parent LIKE 'adaptations/%'"
        )
        spans = [(row.start_time, row.end_time) for row in connection.execute(query) if row.parent in names]
    assert len(spans) >= 3
    assert max(start for start, _ in spans) < min(end for _, end in spans), "all at the same time"
