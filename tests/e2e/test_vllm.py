"""Whole systems on vLLM, on CPU, where it is installed (`make test-vllm`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from rookery.cli.quickstart import STUDENT, TEACHER, register
from rookery.local.ports import free_port
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER
from rookery_engines.base import Engine
from rookery_engines.connect import make_engine
from rookery_engines.models import ModelSource
from rookery_engines.types import GenerationRequest
from rookery_shared.errors import EngineDead
from rookery_shared.types import Sampling
from tests.bench.shapes import TINY
from tests.contract.test_engines import needs_vllm
from tests.e2e.conftest import running_system
from tests.e2e.systems import System, finish, small_run, wait_for
from tests.waiting import wait_until

pytestmark = [needs_vllm, pytest.mark.timeout(1200)]

CONTEXTS = os.environ.get("ROOKERY_VLLM_CONTEXTS", "").split()
"""How many the quickstart trains on in a round, and how many it measures on; its own numbers if there is nothing."""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run of a quickstart with vLLM for teacher and evaluator."""
    folder, address = tmp_path_factory.mktemp("quickstart"), f"127.0.0.1:{free_port()}"
    command = ["quickstart", "--engine", "vllm", "--folder", folder, "--address", address, "--json"]
    for option, number in zip(("--train", "--test"), CONTEXTS, strict=False):
        command += [option, number]
    argv = [sys.executable, "-m", "rookery.cli.app", *map(str, command)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    run: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return run


def test_every_trial_of_the_quickstart_was_scored(quickstart: dict[str, Any]) -> None:
    assert quickstart["state"] == "STATE_SUCCEEDED"
    assert quickstart["progress"]["trials_done"] == quickstart["progress"]["trials_total"] > 0


def test_the_quickstart_s_rows_are_in_order(quickstart: dict[str, Any]) -> None:
    means = {row["name"]: row["mean"] for row in quickstart["measurements"]}
    assert means["base"] < means["passage only"] < means["self-edits before RL"] < means["after round 2"]


def test_calls_in_flight_fail_when_the_core_is_killed() -> None:
    long = Sampling(temperature=1.0, max_new_tokens=3000)
    requests = [GenerationRequest(prompt="Edda", sampling=long, seed=seed) for seed in range(40)]

    async def ask(engine: Engine) -> None:
        async for _ in engine.generate(requests):
            kill_core(os.getpid())

    async def check() -> None:
        engine = make_engine("vllm", ModelSource(source=str(TINY)))
        watching = asyncio.ensure_future(engine.watch())
        for call in (ask(engine), watching, ask(engine)):
            with pytest.raises(EngineDead):
                await asyncio.wait_for(call, 60)
        engine.close()

    asyncio.run(check())


def test_a_core_that_is_killed_ends_its_service_and_the_run_completes(tmp_path: Path) -> None:
    with running_system(tmp_path, ROOKERY_LEASE_SECONDS="15") as system:
        register(system.client, f"{TEACHER}-vllm", ROLE_TEACHER, "tiny", engine="vllm")
        register(system.client, f"{STUDENT}-vllm", ROLE_STUDENT, "tiny", engine="vllm")
        run = small_run(contexts=8)
        run.teacher, run.student = f"{TEACHER}-vllm", f"{STUDENT}-vllm"
        name = system.client.create_run(run).name
        for process in ("evaluator-tiny-student-vllm", "teacher-tiny-teacher-vllm"):
            wait_for(system.client, name, trials=1, seconds=240)
            kill_core_of(system, process)
        done = finish(system.client, name)
    assert done.progress.trials_done == done.progress.trials_total > 0
    for process in ("evaluator-tiny-student-vllm", "teacher-tiny-teacher-vllm"):
        said = (tmp_path / "logs" / f"{process}.log").read_text()
        assert "ENGINE_DEAD" in said
        assert "ended with code 1" in said


def kill_core_of(system: System, process: str) -> None:
    """The service ends, and its supervisor starts another."""
    old = system.cluster.process(process).pid
    assert old is not None
    kill_core(old)
    wait_until(lambda: system.cluster.process(process).pid not in (None, old), seconds=60, what=f"{process} again")


def kill_core(pid: int) -> None:
    """SIGKILL the process that holds the model of a process."""
    [core] = [child for child in psutil.Process(pid).children() if "EngineCore" in child.name()]
    core.send_signal(signal.SIGKILL)
