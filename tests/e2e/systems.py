"""A running system, and small runs for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

from rookery import Client, Recipe, Sampling
from rookery.cli.quickstart import STUDENT, STUDENT_RECIPE, TEACHER, as_messages, register
from rookery.cli.recipes import OptimiserName, policy_optimiser
from rookery.local.cluster import Cluster
from rookery.v1.adaptation_service_pb2 import STATE_RUNNING, STATE_SUCCEEDED
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER
from rookery.v1.recipe_pb2 import GRADER_EXACT
from rookery.v1.run_service_pb2 import Run, RunPlan
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.waiting import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    cluster: Cluster
    client: Client
    address: str
    teacher: str
    student: str


def rookery(system: System, *arguments: object, fails: bool = False) -> str:
    """Run the command against the system. Returns its output; asserts its exit code and that there is no traceback."""
    argv = [sys.executable, "-m", "rookery.cli.app", *map(str, arguments), "--server", system.address]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    return done.stdout + (done.stderr if fails else "")


def register_tiny(client: Client) -> None:
    register(client, TEACHER, ROLE_TEACHER, "tiny")
    register(client, STUDENT, ROLE_STUDENT, "tiny")


def small_run(
    *,
    contexts: int = 4,
    test: int = 2,
    rounds: int = 1,
    seed: int = 0,
    control: bool = False,
    optimiser: OptimiserName = OptimiserName.rest_em,
) -> Run:
    """A run of seconds on the micro-world."""
    return Run(
        teacher=TEACHER,
        student=STUDENT,
        train_contexts=as_messages(make_contexts(Surnames.TRAIN, contexts, seed=seed)),
        test_contexts=as_messages(make_contexts(Surnames.TEST, test, seed=seed)) if test else [],
        plan=RunPlan(
            rounds=rounds,
            self_edits=2,
            seeds=1,
            test_self_edits=1,
            reward=GRADER_EXACT,
            control=control,
            keep_without_gain=optimiser is OptimiserName.rest_em,
            optimiser=policy_optimiser(optimiser),
            sampling=Sampling(max_new_tokens=96),
            student_recipe=STUDENT_RECIPE,
            teacher_recipe=Recipe(rank=8, alpha=16, targets=["all-linear"], epochs=2, batch_size=4),
            seed=seed,
        ),
    )


def wait_for(client: Client, run: str, *, trials: int, seconds: float = 120.0) -> Run:
    """Until so many trials are done."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = client.get_run(run)
        if now.progress.trials_done >= trials or now.state != STATE_RUNNING:
            return now
        time.sleep(0.05)
    raise TimeoutError(f"{run} has {now.progress.trials_done} trials after {seconds} s")


def finish(client: Client, run: str) -> Run:
    """To its end; asserts that it succeeded and that its events were in order."""
    sequences = [event.sequence for event in client.watch_run(run)]
    assert all(a < b for a, b in pairwise(sequences))
    done = client.get_run(run)
    assert done.state == STATE_SUCCEEDED, done.failure
    return done


def kill(system: System, process: str) -> int:
    """SIGKILL a service's process, and wait until its supervisor has started another. Returns the new pid."""
    old = system.cluster.process(process).pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: system.cluster.process(process).pid not in (None, old), seconds=30, what=f"{process} again")
    new = system.cluster.process(process).pid
    assert new is not None
    return new
