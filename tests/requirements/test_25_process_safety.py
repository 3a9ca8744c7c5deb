"""25. Nothing forks with channels or CUDA: the process that trains is started anew, and is all that has torch."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rookery.local.ports import free_port
from rookery_shared.errors import AddressTaken
from rookery_shared.rpc.server import RpcServer
from rookery_shared.settings import ServerSettings
from tests.requirements.isolated_worker import CALLS
from tests.requirements.isolation import isolated_worker, process_of, runs
from tests.requirements.light import Light
from tests.requirements.removal import Removal
from tests.waiting import wait_until

REMOVALS = [
    Removal(
        what="the student's worker knows nothing of training",
        file="services/rookery_student/worker.py",
        old="from rookery_student.settings import StudentSettings\n",
        new="from rookery_student import training\nfrom rookery_student.settings import StudentSettings\n",
        test="test_workers_load_no_torch[student]",
    ),
    Removal(
        what="the trainer's worker knows nothing of training",
        file="services/rookery_teacher/worker.py",
        old="from rookery_teacher.settings import TeacherSettings\n",
        new="from rookery_teacher import trainer\nfrom rookery_teacher.settings import TeacherSettings\n",
        test="test_workers_load_no_torch[trainer]",
    ),
    Removal(
        what="the process ends with its worker, even if it is stuck",
        file="shared/rookery_shared/jobs/child.py",
        old='    if sys.platform == "linux":',
        new="    if False:",
        test="test_the_process_ends_with_its_worker[hangs]",
    ),
    Removal(
        what="what the process counts is told",
        file="shared/rookery_shared/jobs/child.py",
        old="    count_elsewhere(wire.count)\n",
        new="",
        test="test_what_the_process_counts_is_told_by_its_worker",
    ),
    Removal(
        what="a port has one server",
        file="shared/rookery_shared/rpc/server.py",
        old='    ("grpc.so_reuseport", 0),',
        new='    ("grpc.so_reuseport", 1),',
        test="test_a_second_server_on_a_port_fails",
    ),
]

WORKERS = {
    "student": ("rookery_student.__main__", "rookery_student.worker"),
    "trainer": ("rookery_teacher.__main__", "rookery_teacher.worker"),
}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_load_no_torch(name: str) -> None:
    """Neither the program nor what builds its runner; so there can be no CUDA in it either."""
    code = (
        f"import sys, {', '.join(WORKERS[name])}\n"
        f"sys.modules['{WORKERS[name][1]}'].build_runner()\n"
        "print(*sorted({'torch', 'transformers', 'safetensors', 'peft'} & {*sys.modules}))"
    )
    environment = {**os.environ, "ROOKERY_PROFILE": "profiles/x"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_calls_are_made_beside_a_worker_that_makes_calls(tidy_light: Light) -> None:
    """The worker beats and reports; the process that it has started makes calls through a channel of its own."""
    with isolated_worker(tidy_light) as worker:
        [job] = tidy_light.submit("0 calls")
        tidy_light.finish([job], seconds=60)
        [called] = [entry for entry in tidy_light.journal("called") if entry["job"] == job]
        assert called["calls"] == CALLS
        process = process_of(tidy_light, job)
        command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        assert b"rookery_shared.jobs.child" in command, "not a copy of the worker, which has channels"
        assert not sockets(process) & sockets(worker.server.pid), "nor did it inherit any"
        assert os.getpgid(process) == process, "signals to the worker's group are not for it"


def test_what_the_process_counts_is_told_by_its_worker(tidy_light: Light) -> None:
    """Prometheus asks the worker alone, which knows of every metric before something has happened."""
    with isolated_worker(tidy_light) as worker:
        published = 'rookery_adapter_publish_total{result="published"}'
        tidy_light.finish(tidy_light.submit("0 seconds"), seconds=60)
        assert worker.counted(published) == 0
        jobs = tidy_light.submit("0 counts", "0 counts")
        tidy_light.finish(jobs, seconds=60)
        assert worker.counted(published) == 2
        assert worker.counted("rookery_adapter_load_lag_seconds_count") == 2
        assert worker.counted("rookery_adapter_load_lag_seconds_sum") == 0.5
        lines = [line for line in worker.log.read_text().splitlines() if " counted " in line]
        assert [job for line in lines for job in jobs if f"job={job} " in f"{line} "] == jobs, "and its log names them"


@pytest.mark.parametrize("how", ["seconds", "hangs"])
def test_the_process_ends_with_its_worker(tidy_light: Light, how: str) -> None:
    with isolated_worker(tidy_light) as worker:
        [job] = tidy_light.submit(f"20 {how}")
        wait_until(lambda: tidy_light.starts(job), seconds=60, what="it begins")
        os.kill(worker.server.pid, signal.SIGKILL)
        wait_until(lambda: not runs(process_of(tidy_light, job)), seconds=2, what="its process has ended")


def test_a_second_server_on_a_port_fails() -> None:
    async def serve_twice() -> None:
        address = f"127.0.0.1:{free_port()}"
        settings = ServerSettings()
        first, second = (RpcServer([], address=address, settings=settings) for _ in range(2))
        await first.start()
        try:
            with pytest.raises(AddressTaken):
                await second.start()
        finally:
            await asyncio.gather(first.stop(), second.stop())  # gRPC does not end a process with a server that runs

    asyncio.run(serve_twice())


def sockets(pid: int) -> set[str]:
    """Inodes of those that a process has open."""

    def links() -> Iterator[str]:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                yield str(descriptor.readlink())
            except FileNotFoundError:
                continue

    return {link for link in links() if link.startswith("socket:")}
