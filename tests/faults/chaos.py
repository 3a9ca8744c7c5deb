"""Small SEAL runs through a whole system while an adversary breaks it; then everything must have ended well.

    python -m tests.faults.chaos --seed 1 --runs 200 --broker redis

Every service is a process of its own, on PostgreSQL and a real broker, with the built-in tiny model; the connections to
the database, the broker, the coordinator's job service, the teacher and the evaluator go through proxies. Processes
also kill, stop and delay themselves at their fault points. The promise is that all runs succeed: faults come seldom
enough that no job has all of its attempts spoiled.

Prints a line a run, each kind of fault with how often it was dealt, and the verdict. Ends with 1 if a promise was
broken.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

from sqlalchemy import make_url, text

from rookery.cli.quickstart import STUDENT, TEACHER
from rookery.errors import CallFailed
from rookery_coordinator.database import Database
from rookery_shared.jobs.queues import evaluate_queue, generate_queue, improve_queue, train_queue
from rookery_shared.settings import StoreSettings
from rookery_shared.store.connect import connect_store
from tests.e2e.conftest import running_system
from tests.e2e.systems import System, small_run
from tests.faults.adversary import Adversary, Broker, wait
from tests.faults.checker import Evidence, Promise, Violation, check, nothing_stuck
from tests.faults.history import read_events, read_transitions, record_transitions
from tests.faults.proxy import Proxy
from tests.servers.postgres import make_database, start_postgres
from tests.servers.rabbitmq import RabbitMQServer, connect, start_rabbitmq
from tests.servers.redis import RedisServer, start_redis

BrokerName = Literal["redis", "rabbitmq"]

POINTS = {
    # Each happens some times in 200 runs. A job process that dies costs most: a model is loaded again, seconds of CPU.
    "claimed": ("kill", 0.003),
    "beat": ("pause:11", 0.02),
    "step": ("kill", 0.0001),
    "checkpointed": ("kill", 0.0006),
    "publishing": ("kill", 0.002),
    "file-stored": ("kill", 0.0008),
    "published": ("kill", 0.002),
    "worked": ("stop:18", 0.006),
    "completed": ("kill", 0.003),
    "committing": ("kill", 0.0008),
    "committed": ("kill", 0.0008),
    "relaying": ("kill", 0.0024),
    "relayed": ("kill", 0.0024),
    "reaping": ("kill", 0.1),
    "reaped": ("pause:1", 0.02),
    "written": ("kill", 0.006),
    "scored": ("kill", 0.003),
}
"""What a process does to itself there, and how often."""
EPOCHS = 3
"""Of a student: enough for checkpoints to go on from. What it learns does not matter."""
TOKENS = 48
"""Of a self-edit, likewise."""
SETTLE_SECONDS = 180.0
"""Within this after the last fault, everything has ended: some leases, pauses between attempts and restarts."""
STUCK_SECONDS = 600.0
"""A run that takes longer, with all the faults, is stuck: a violation, and no more are dealt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    seed: int
    runs: int
    broker: BrokerName
    at_once: int
    """Runs in flight."""
    pace: float
    """Mean seconds between two faults of the adversary."""
    zeal: float = 1.0
    """How many times as often as in `POINTS` processes fail by themselves: a few runs see little otherwise."""
    minutes: float = math.inf
    """Then no more runs are begun; those in flight end, and all is checked."""
    lease: float
    """Seconds; a machine that is slow to start processes again needs longer ones."""
    log: Path


class RedisUnderFire:
    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def restart(self, *, in_order: bool) -> None:
        self._server.stop() if in_order else self._server.kill()
        self._server.start()

    def wipe(self) -> None:
        self._server.wipe()


class RabbitMQUnderFire:
    def __init__(self, server: RabbitMQServer, url: str, queues: Sequence[str]) -> None:
        self._server, self._url, self._queues = server, url, queues

    def restart(self, *, in_order: bool) -> None:
        self._server.stop() if in_order else self._server.kill()
        self._server.start()

    def wipe(self) -> None:
        for queue in self._queues:
            with connect(self._url) as connection:
                try:
                    connection.default_channel.queue_purge(queue)
                except connection.channel_errors:
                    continue  # nobody has declared it yet


@dataclass(kw_only=True)
class Chaos:
    """A system under fire."""

    options: Options
    system: System
    database: Database
    """Not through a proxy."""
    adversary: Adversary
    folder: Path
    log: IO[str]

    def __post_init__(self) -> None:
        self._accepted: dict[str, float] = {}
        self._ended: set[str] = set()
        self._store = connect_store(StoreSettings(store_url=f"file://{self.system.cluster.folder}/objects"))

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()

    def run(self) -> list[Violation]:
        started = time.monotonic()
        self.adversary.start()
        stuck: list[Violation] = []
        while (self._may_begin(started) or self._in_flight()) and not stuck:
            if self._may_begin(started) and len(self._in_flight()) < self.options.at_once:
                self._create()
            self._look(started)
            stuck = [
                Violation(
                    promise=Promise.NOTHING_STUCK, what=f"{run} has not ended after {STUCK_SECONDS:.0f} s under fire"
                )
                for run, since in self._in_flight().items()
                if time.monotonic() - since > STUCK_SECONDS
            ]
            time.sleep(0.5)
        under_fire = time.monotonic() - started
        (self.folder / "armed").unlink()
        self.adversary.stop()
        settled = wait(lambda: not [*nothing_stuck(self._rows())], seconds=SETTLE_SECONDS)
        self._look(started)
        if not settled:
            self.system.cluster.stop()  # evidence that still changes contradicts itself
        self._tell_faults()
        self.say(
            f"{under_fire:.0f} s under fire, {under_fire / max(1, len(self._ended)):.1f} s a run; settled: {settled}"
        )
        return stuck + check(self._evidence())

    @property
    def ended(self) -> int:
        """Runs that have."""
        return len(self._ended)

    def _may_begin(self, started: float) -> bool:
        """Another run."""
        in_time = time.monotonic() - started < 60 * self.options.minutes
        return in_time and len(self._accepted) < self.options.runs

    def _in_flight(self) -> dict[str, float]:
        return {name: since for name, since in self._accepted.items() if name not in self._ended}

    def _create(self) -> None:
        """As a client that tries again. What it never got an answer to may be there all the same, and must end, too."""
        number = len(self._accepted)
        plan = small_run(contexts=1, test=1, seed=1000 * self.options.seed + number)
        plan.plan.student_recipe.epochs = EPOCHS
        plan.plan.sampling.max_new_tokens = TOKENS
        try:
            run = self.system.client.create_run(plan)
        except CallFailed:
            return
        self._accepted[run.name] = time.monotonic()

    def _look(self, started: float) -> None:
        query = text("SELECT name, state, coalesce(failure_message, '') FROM runs WHERE end_time IS NOT NULL")
        with self.database.read() as session:
            rows = session.execute(query).all()
        for name, state, failure in rows:
            if name in self._accepted and name not in self._ended:
                self._ended.add(name)
                seconds, at = time.monotonic() - self._accepted[name], time.monotonic() - started
                self.say(f"{at:7.1f} s  run {len(self._ended):3}  {name}  {state} in {seconds:5.1f} s  {failure}")

    def _rows(self) -> Evidence:
        accepted = [*self._accepted]
        return Evidence(database=self.database, store=self._store, accepted=accepted, transitions=(), events=())

    def _evidence(self) -> Evidence:
        events = read_events(self.folder / "history")
        return replace(self._rows(), transitions=read_transitions(self.database), events=events)

    def _tell_faults(self) -> None:
        by_points = Counter(
            f"{event.fault} at {event.point}" for event in read_events(self.folder / "history") if event.fault
        )
        for what, times in sorted((self.adversary.dealt + by_points).items()):
            self.say(f"{times:5}  {what}")
        self.say(f"{self.adversary.dealt.total() + by_points.total():5}  faults")


@contextmanager
def under_fire(options: Options, folder: Path) -> Iterator[Chaos]:
    """The system, its servers and the proxies before them."""
    folder.mkdir(parents=True, exist_ok=True)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(options.log.open("w"))
        direct = make_database(stack.enter_context(start_postgres()))
        url = make_url(direct)
        proxies = {"database": stack.enter_context(Proxy(f"unix:{url.query['host']}/.s.PGSQL.5432"))}
        broker, broker_url, proxies["broker"] = _broker(options.broker, folder / "broker", stack)
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        for name in ("jobs", "teacher", "evaluator"):
            proxies[name] = stack.enter_context(Proxy(f"unix:{sockets}/{name}.sock"))
        settings = {
            "ROOKERY_DATABASE_URL": f"postgresql+psycopg://{url.username}@{proxies['database'].address}/{url.database}",
            "ROOKERY_BROKER_URL": broker_url,
            "ROOKERY_JOB_ADDRESS": f"unix:{sockets}/jobs.sock",
            "ROOKERY_JOB_SERVICE_TARGET": proxies["jobs"].address,
            "ROOKERY_TEACHER_TARGET": proxies["teacher"].address,
            "ROOKERY_EVALUATOR_TARGET": proxies["evaluator"].address,
            "ROOKERY_LEASE_SECONDS": str(options.lease),
            "ROOKERY_CHECKPOINT_SECONDS": "0.2",  # jobs take a second or so
            "ROOKERY_HISTORY": f"{folder}/history",
            "ROOKERY_FAULTS": ",".join(
                f"{point}={fault}@{min(1.0, options.zeal * chance):.6f}" for point, (fault, chance) in POINTS.items()
            ),
            "ROOKERY_FAULTS_SEED": str(options.seed),
            "ROOKERY_FAULTS_WHILE": f"{folder}/armed",
        }
        system = stack.enter_context(running_system(folder / "system", **settings))
        for name, profile in (("teacher", system.teacher), ("evaluator", system.student)):
            id_ = profile.removeprefix("profiles/")
            proxies[name].upstream = f"unix:{system.cluster._sockets}/{name}-{id_}.sock"
        database = Database(direct)
        stack.callback(database.close)
        record_transitions(database)
        adversary = Adversary(
            system.cluster, broker, proxies, seed=options.seed, pace=options.pace, stop=1.3 * options.lease
        )
        (folder / "armed").touch()  # what comes before is no test of anything
        yield Chaos(options=options, system=system, database=database, adversary=adversary, folder=folder, log=log)


def _broker(name: BrokerName, folder: Path, stack: ExitStack) -> tuple[Broker, str, Proxy]:
    """The server, the URL that the services are told, and the proxy behind it."""
    if name == "redis":
        redis = stack.enter_context(start_redis(folder))
        proxy = stack.enter_context(Proxy(f"127.0.0.1:{redis.port}"))
        return RedisUnderFire(redis), redis.url.replace(str(redis.port), str(proxy.port)), proxy
    rabbitmq = stack.enter_context(start_rabbitmq(folder))
    proxy = stack.enter_context(Proxy(f"127.0.0.1:{rabbitmq.port}"))
    queues = [generate_queue(), evaluate_queue(), train_queue(STUDENT), improve_queue(TEACHER)]
    url = rabbitmq.url()
    return RabbitMQUnderFire(rabbitmq, url, queues), url.replace(str(rabbitmq.port), str(proxy.port)), proxy


def chaos(options: Options, folder: Path) -> list[Violation]:
    """All violations; `folder` has what all processes have written."""
    with under_fire(options, folder) as running:
        dealt = f"a fault about every {options.pace:g} s, leases of {options.lease:g} s"
        running.say(f"{options.runs} runs on {options.broker}, seed {options.seed}, {options.at_once} at once, {dealt}")
        violations = running.run()
        for violation in violations:
            running.say(f"VIOLATION  {violation}")
        what = f"{running.ended} of {options.runs} runs on {options.broker}, seed {options.seed}"
        running.say(f"{what}: {len(violations)} violations")
    return violations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--at-once", type=int, default=10, help="runs in flight")
    parser.add_argument("--pace", type=float, default=20.0, help="mean seconds between two faults of the adversary")
    parser.add_argument("--zeal", type=float, default=1.0, help="how many times as often processes fail by themselves")
    parser.add_argument("--lease", type=float, default=15.0, help="seconds for which a worker may be silent")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no more runs are begun")
    parser.add_argument("--out", type=Path, default=Path("tests/faults/results"), help="folder of the log")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # and leave no process behind
    options = Options(
        seed=told.seed,
        runs=told.runs,
        broker=told.broker,
        at_once=told.at_once,
        pace=told.pace,
        zeal=told.zeal,
        lease=told.lease,
        minutes=told.minutes,
        log=told.out / f"{told.broker}-{told.seed}.log",
    )
    folder = Path(tempfile.mkdtemp(prefix="rookery-chaos-"))
    violations = chaos(options, folder)
    if violations:
        sys.exit(f"what the processes wrote is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
