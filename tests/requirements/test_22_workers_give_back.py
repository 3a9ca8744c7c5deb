"""22, for workers: told to end, one gives its jobs back with what they have come to, and ends within seconds."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import select

from rookery_coordinator import submissions
from rookery_coordinator.tables import Job, Profile
from rookery_coordinator.types import JobKind, JobState
from rookery_shared.types import Context, LoraRecipe, Question, Schedule
from tests.bench.shapes import TINY
from tests.integration.worlds import STUDENT, TEACHER
from tests.requirements.isolation import isolated_worker, job_row
from tests.requirements.light import PLAN, Light, Process
from tests.requirements.removal import Removal
from tests.waiting import wait_until

SECONDS = 15.0
"""Half of what a machine gives that is taken away."""
EPOCHS = 300

REMOVALS = [
    Removal(
        what="workers give back when they are told to end",
        file="shared/rookery_shared/jobs/worker.py",
        old="    signals.worker_shutting_down.connect(lambda **_: told.put(None), weak=False)",
        new="    pass",
        test="test_a_student_that_is_told_to_end_leaves_its_checkpoints_to_the_next",
    ),
    Removal(
        what="giving back counts as no attempt",
        file="services/rookery_coordinator/outcomes.py",
        old="    leases.requeue(session, job, delay=0.0, held=_is_held(session, job))",
        new="    leases.retry(session, job, held=_is_held(session, job))",
        test="test_a_stuck_job_is_given_back_as_well",
    ),
    Removal(
        what="calls to others end when the job must stop",
        file="services/rookery_coordinator/worker.py",
        old="        lease.when_stopped(started.cancel)\n",
        new="",
        test="test_the_coordinators_worker_does_not_wait_for_answers",
    ),
    Removal(
        what="nothing is given back before no more is taken",
        file="shared/rookery_shared/jobs/worker.py",
        old="            consumer.wait_until_over(CLOSE_SECONDS)",
        new="            pass",
        test="test_what_is_given_back_is_not_taken_again[redis]",
    ),
]


@contextmanager
def service(light: Light, *argv: str, **settings: str) -> Iterator[Process]:
    """A process of the product's own."""
    process = light.start(*argv, **{f"ROOKERY_{name.upper()}": value for name, value in settings.items()})
    try:
        yield process
    finally:
        process.server.end(signal.SIGKILL)


def ends(process: Process) -> None:
    """By SIGTERM, in time and in order."""
    began = time.monotonic()
    assert process.server.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < SECONDS


def train_job(light: Light, parent: str) -> Job | None:
    with light.database.read() as session:
        return session.scalars(select(Job).where(Job.parent == parent, Job.kind == JobKind.TRAIN)).one_or_none()


def checkpoints(light: Light, job: str) -> dict[str, int]:
    """Whole epochs in each checkpoint of a job, by the adapter's key."""
    folder = light.folder / "objects" / "unfinished" / job
    return {path.stem: epochs_in(path) for path in folder.glob("[!.]*.safetensors")}


def epochs_in(path: Path) -> int:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return int(json.loads(header["__metadata__"]["rookery"])["progress"]["epochs"])


def test_a_student_that_is_told_to_end_leaves_its_checkpoints_to_the_next(tidy_light: Light) -> None:
    recipe = LoraRecipe(rank=4, alpha=8, epochs=EPOCHS, schedule=Schedule.CONSTANT)
    with tidy_light.database.write() as session:
        session.get_one(Profile, STUDENT).source = str(TINY)
        parent = submissions.create_adaptation(
            session,
            teacher=TEACHER,
            student=STUDENT,
            plan=replace(PLAN, self_edits=2, student_recipe=recipe),
            context=Context(title="0 seconds", passage="Zzz.", questions=(Question(question="q?", answer="a"),)),
        ).name
    settings = {"profile": STUDENT, "checkpoint_seconds": "0.2", "torch_threads": "1"}
    with isolated_worker(tidy_light):
        wait_until(lambda: train_job(tidy_light, parent) is not None, seconds=60, what="there is something to train")
    job = train_job(tidy_light, parent)
    assert job is not None
    with service(tidy_light, "rookery_student", **settings) as first:
        wait_until(lambda: len(checkpoints(tidy_light, job.id)) == len(job.scope), seconds=150, what="checkpoints")
        ends(first)
    given_back = job_row(tidy_light, job.id)
    assert (given_back.state, given_back.epoch, given_back.attempts) == (JobState.QUEUED, 2, 0)
    left = checkpoints(tidy_light, job.id)
    with service(tidy_light, "rookery_student", **settings) as second:
        wait_until(lambda: gone_on(second.log) == left, seconds=120, what="the next one goes on from there")
    left_over = job_row(tidy_light, job.id)
    assert (left_over.state, left_over.epoch) == (JobState.RUNNING, 2)


def gone_on(log: Path) -> dict[str, int]:
    """Whole epochs that adapters go on after, by their keys."""
    return {key: int(epochs) for key, epochs in re.findall(r"(\w+) goes on after epoch (\d+) of", log.read_text())}


def test_a_stuck_job_is_given_back_as_well(tidy_light: Light) -> None:
    with isolated_worker(tidy_light, stop_seconds=1.0) as worker:
        [job] = tidy_light.submit("20 hangs first")
        wait_until(lambda: tidy_light.starts(job), seconds=60, what="it begins")
        ends(worker)
    row = job_row(tidy_light, job)
    assert (row.state, row.epoch, row.attempts) == (JobState.QUEUED, 2, 0)


def test_the_coordinators_worker_does_not_wait_for_answers(tidy_light: Light) -> None:
    nobody = f"unix:{tidy_light.folder}/nobody.sock"
    with service(tidy_light, "rookery_coordinator", "worker", teacher_target=nobody) as worker:
        [job] = tidy_light.submit("0 seconds")
        wait_until(lambda: tidy_light.states([job]) == [JobState.RUNNING], seconds=60, what="it begins")
        ends(worker)
    row = job_row(tidy_light, job)
    assert (row.state, row.epoch, row.attempts) == (JobState.QUEUED, 2, 0)


def test_what_is_given_back_is_not_taken_again(light: Light) -> None:
    """Though it is announced again while the worker, which has slots to spare, still ends."""
    nobody = f"unix:{light.folder}/nobody.sock"
    settings = {"teacher_target": nobody, "faults": "released=pause:3"}
    with service(light, "rookery_coordinator", "worker", **settings) as worker:
        [job] = light.submit("0 seconds")
        wait_until(lambda: light.states([job]) == [JobState.RUNNING], seconds=60, what="it begins")
        ends(worker)
    light.cancel_all()
    assert light.epochs([job]) == [2]
