"""What one coordinator takes: adaptations accepted in a second, how soon, in how much memory; and that none is lost.

    python -m tests.bench.control --out tests/bench/results/control-cpu.json

A Create is answered when its commit is on disk. How long the disk takes for that alone is in the result; with
`--folder /dev/shm` nothing waits for a disk, and what is left is ours and PostgreSQL's.

A real coordinator on PostgreSQL and Redis with a relay in a process of its own, and on the same machine a client and
workers without models: they take messages from Redis, claim through the coordinator and answer at once, so that nothing
but the coordinator takes time.

- Accepting: as many calls of CreateAdaptation in flight as a busy front end has; the relay sends messages meanwhile and
  for some time after.
- At half of the rate that is asked for: calls start at their times, whether others have ended or not, and latency
  counts from then.
- Finishing: the workers start, and the coordinator is killed twice, each time with a job in every worker's hands.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import redis.asyncio
from sqlalchemy import func, select

from rookery.errors import from_rpc
from rookery.internal.v1 import job_service_pb2 as jobs_pb
from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.local.cluster import wait_until_serving
from rookery.local.ports import free_port
from rookery.v1 import adaptation_service_pb2, adapter_service_pb2
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.context_pb2 import Context, Question
from rookery.v1.recipe_pb2 import GRADER_EXACT, LoraRecipe
from rookery_coordinator.database import Database
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Adaptation, Job, Outbox
from rookery_coordinator.types import State
from rookery_shared.errors import JobNotQueued, StaleEpoch
from tests.integration.worlds import STUDENT, TEACHER, make_profiles
from tests.servers.postgres import make_database, start_postgres
from tests.servers.redis import start_redis

ASKED_RATE, ASKED_P99_MS, ASKED_MIB = 300.0, 50.0, 300.0
IN_FLIGHT = 64
QUEUES = ("evaluate", "train.student", "generate")
"""What is nearer to its end goes first."""
WORKERS, HANDS = 2, 12
"""Processes, and jobs at once in each."""


# --- the coordinator -------------------------------------------------------------------------------------------------


class Coordinator:
    """Its process, and what it has taken at most."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**os.environ, **environment, "ROOKERY_RELAYS": "false"}
        self.target = environment["ROOKERY_ADDRESS"]
        self.most_bytes = 0
        self.cpu_seconds = 0.0
        self.relay = self._run("relay")
        self.start()
        threading.Thread(target=self._sample, daemon=True).start()

    def start(self) -> None:
        self.process = self._run("serve")
        wait_until_serving(self.target)

    def _run(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "rookery_coordinator", command], env=self._environment)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        for process in (self.process, self.relay):
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def _sample(self) -> None:
        while True:
            with suppress(psutil.Error):
                process = psutil.Process(self.process.pid)
                self.most_bytes = max(self.most_bytes, process.memory_info().rss)
                times = process.cpu_times()
                self.cpu_seconds = times.user + times.system
            time.sleep(0.5)


# --- the client ------------------------------------------------------------------------------------------------------


def request(number: int) -> adaptation_service_pb2.CreateAdaptationRequest:
    context = Context(
        title=f"Title {number}",
        passage=f"Passage {number}. " + "It says something. " * 30,
        questions=[Question(question="What?", answer="That.")],
    )
    asked = adaptation_service_pb2.Adaptation(
        teacher=TEACHER,
        student=STUDENT,
        context=context,
        self_edits=1,
        seeds=1,
        reward=GRADER_EXACT,
        recipe=LoraRecipe(rank=8, alpha=16),
    )
    return adaptation_service_pb2.CreateAdaptationRequest(adaptation=asked, request_id=f"request-{number}")


Create = Callable[[int], Awaitable[str]]


def creating(channel: grpc.aio.Channel) -> Create:
    stub = AdaptationServiceStub(channel)

    async def create(number: int) -> str:
        made = await stub.CreateAdaptation(request(number), timeout=30.0)
        return str(made.name)

    return create


async def accept(create: Create, numbers: Sequence[int]) -> tuple[list[str], float]:
    """All of them, so many in flight. Returns their names and how many a second."""
    left = iter(numbers)
    names: list[str] = []

    async def caller() -> None:
        for number in left:
            names.append(await create(number))

    started = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return names, len(numbers) / (time.monotonic() - started)


async def accept_at(create: Create, numbers: Sequence[int], rate: float) -> tuple[list[str], list[float]]:
    """Each at its time. Returns names and seconds from when each was due to its answer."""
    loop = asyncio.get_running_loop()
    start = loop.time() + 1.0  # by then all of them wait for their times

    async def one(number: int, due: float) -> tuple[str, float]:
        await asyncio.sleep(due - loop.time())
        name = await create(number)
        return name, loop.time() - due

    done = await asyncio.gather(*(one(number, start + i / rate) for i, number in enumerate(numbers)))
    return [name for name, _ in done], [seconds for _, seconds in done]


# --- the workers -----------------------------------------------------------------------------------------------------


def work(job_target: str, redis_port: int, number: int) -> None:
    """A process of them."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_work(job_target, redis_port, number))


async def _work(job_target: str, redis_port: int, number: int) -> None:
    broker = redis.asyncio.Redis(port=redis_port)
    async with grpc.aio.insecure_channel(job_target, options=[("grpc.max_reconnect_backoff_ms", 1000)]) as channel:
        stub = JobServiceStub(channel)
        await asyncio.gather(*(_hand(stub, broker, f"bench/{number}/{hand}") for hand in range(HANDS)))


async def _hand(stub: Any, broker: Any, worker: str) -> None:
    while True:
        _, raw = await broker.brpop([f"rookery:{queue}" for queue in QUEUES])
        message = json.loads(base64.b64decode(json.loads(raw)["body"]))[1]
        job, epoch = message["job"], message["epoch"]
        try:
            claimed = await _patiently(stub.Claim, jobs_pb.ClaimRequest(job=job, epoch=epoch, worker=worker))
            result = answer(claimed, job)
            result.job, result.epoch = job, epoch
            await _patiently(stub.Complete, result)
        except grpc.RpcError as error:
            if from_rpc(error).reason not in (JobNotQueued.reason, StaleEpoch.reason):
                raise


async def _patiently(method: Any, message: Any) -> Any:
    """Again and again while the coordinator is away."""
    while True:
        try:
            return await method(message, timeout=30.0, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)


def answer(claim: jobs_pb.ClaimResponse, job: str) -> jobs_pb.CompleteRequest:
    result = jobs_pb.CompleteRequest()
    match claim.WhichOneof("work"):
        case "generate":
            for item in claim.generate.items:
                written = result.generated.items.add()
                for seed in item.seeds:
                    written.self_edits.add(
                        prompt="p", text=f"A text of {job}.", seed=seed, prompt_tokens=9, completion_tokens=9, draws=1
                    )
        case "train":
            for trial in claim.train.trials:
                trained = result.trained.adapters[trial.id]
                trained.adapter, trained.size_bytes = f"adapters/{trial.id.zfill(64)}", 1000
                trained.training.CopyFrom(
                    adapter_service_pb2.Training(losses=[1.0, 0.5], tokens=100, seconds=0.1, weight_change=1.0)
                )
        case "evaluate":
            result.evaluated.base_model, result.evaluated.graders[:] = "m", ["exact/1"]
            for trained_item in claim.evaluate.items:
                scored = result.evaluated.items.add(trial=trained_item.trial, question_set="q")
                for _ in trained_item.context.questions:
                    grades = {"exact": 0.0, "loglik": -2.0}
                    scored.questions.add(before="no", after="yes", grades_before=grades, grades_after=grades)
    return result


# --- what it comes to ------------------------------------------------------------------------------------------------


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def states(database: Database) -> Counter[str]:
    with database.read() as session:
        query = select(Adaptation.state, func.count()).group_by(Adaptation.state)
        return Counter({state.value: count for state, count in session.execute(query)})


def unsent(database: Database) -> int:
    """Messages that the broker has not got."""
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Outbox)) or 0


def finish(database: Database, coordinator: Coordinator, total: int, *, seconds: float) -> list[float]:
    """Until all have ended; kills the coordinator when a third and when two thirds have. Returns when it was killed."""
    started = time.monotonic()
    kills: list[float] = []
    deadline = started + seconds
    while (ended := sum(n for state, n in states(database).items() if State(state).ended)) < total:
        if time.monotonic() > deadline:
            break
        if len(kills) < 2 and ended > total * (len(kills) + 1) / 3:
            coordinator.kill()
            kills.append(time.monotonic() - started)
            coordinator.start()
        time.sleep(0.5)
    return kills


def disk(folder: Path) -> dict[str, float]:
    """What the disk takes to keep 8 KiB, in ms: a Create cannot be answered before its commit is kept."""
    took = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(400):
            started = time.monotonic()
            file.write(bytes(8192))
            os.fdatasync(file.fileno())
            took.append(time.monotonic() - started)
            time.sleep(0.01)
    cuts = statistics.quantiles(took, n=100)
    return {
        name: round(seconds * 1000, 2) for name, seconds in (("p50", cuts[49]), ("p99", cuts[98]), ("max", max(took)))
    }


def measure(folder: Path, count: int) -> dict[str, Any]:
    fdatasync = disk(folder)
    with start_postgres(folder) as server_url, start_redis(folder / "redis") as broker:
        url = make_database(server_url)
        database = Database(url)
        migrate(database)
        make_profiles(database)
        environment = {
            "ROOKERY_DATABASE_URL": url,
            "ROOKERY_STORE_URL": f"file://{folder}/objects",
            "ROOKERY_CACHE_FOLDER": f"{folder}/cache",
            "ROOKERY_BROKER_URL": broker.url,
            "ROOKERY_ADDRESS": f"127.0.0.1:{free_port()}",
            "ROOKERY_JOB_ADDRESS": f"127.0.0.1:{free_port()}",
            "ROOKERY_LEASE_SECONDS": "10",
            "ROOKERY_FORGOTTEN_SECONDS": "60",
            "ROOKERY_LOG_LEVEL": "WARNING",
        }
        coordinator = Coordinator(environment)
        slow = count * 3 // 10
        try:
            result = asyncio.run(_accepting(coordinator, database, range(count - slow), range(count - slow, count)))
            names = result.pop("names")
            print(json.dumps(result), flush=True)
            context = multiprocessing.get_context("spawn")
            workers = [
                context.Process(target=work, args=(environment["ROOKERY_JOB_ADDRESS"], broker.port, i))
                for i in range(WORKERS)
            ]
            started = time.monotonic()
            for worker in workers:
                worker.start()
            try:
                kills = finish(database, coordinator, count, seconds=3600)
            finally:
                for worker in workers:
                    worker.kill()
                    worker.join()
            seconds = time.monotonic() - started
            with database.read() as session:
                there = {*session.scalars(select(Adaptation.name))}
                done = session.scalar(select(func.count()).select_from(Job)) or 0
            return {
                "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
                "disk_fdatasync_ms": fdatasync,
                "adaptations": count,
                **result,
                "coordinator_mib": round(coordinator.most_bytes / 2**20, 1),
                "states": dict(states(database)),
                "lost": len({*names} - there),
                "coordinator_killed_after_seconds": [round(s, 1) for s in kills],
                "seconds_to_finish": round(seconds, 1),
                "jobs": done,
                "jobs_per_second": round(done / seconds, 1),
            }
        finally:
            coordinator.stop()
            database.close()


async def _accepting(
    coordinator: Coordinator, database: Database, fast: Sequence[int], slow: Sequence[int]
) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(coordinator.target) as channel:
        create = creating(channel)
        await channel.channel_ready()
        before = coordinator.cpu_seconds
        names, rate = await accept(create, fast)
        began = time.monotonic()
        while await asyncio.to_thread(unsent, database):
            await asyncio.sleep(0.2)
        relayed_after = time.monotonic() - began
        cpu = coordinator.cpu_seconds - before
        slow_names, latencies = await accept_at(create, slow, ASKED_RATE / 2)
    cuts = statistics.quantiles(latencies, n=100)
    return {
        "names": [*names, *slow_names],
        "accepted_per_second": round(rate, 1),
        "seconds_until_all_were_relayed": round(relayed_after, 1),
        "coordinator_cpu_ms_for_each": round(cpu / len(fast) * 1000, 2),
        "open_loop_rate": ASKED_RATE / 2,
        "create_ms_p50": round(cuts[49] * 1000, 1),
        "create_ms_p99": round(cuts[98] * 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adaptations", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where PostgreSQL keeps its files; by default on the disk that temporary files are on",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        result = measure(Path(folder), arguments.adaptations)
    print(json.dumps(result, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
