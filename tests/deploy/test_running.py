"""The chart's pods as local processes, on a real PostgreSQL, Redis and S3.

`helm test` passes, and a rolling update under load fails no call.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from rookery import Client
from rookery.cli.quickstart import STUDENT_RECIPE, as_messages
from rookery.v1.adaptation_service_pb2 import STATE_SUCCEEDED
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.deploy.launcher import LocalCluster, may_mount, running_pair
from tests.servers.postgres import make_database

pytestmark = [pytest.mark.xdist_group("chart"), pytest.mark.timeout(600)]

CALLERS = 2
"""Who adapt, one after the other."""
ROLLED = ("rookery-teacher-alpha", "rookery-evaluator-beta", "rookery-coordinator")


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> str:
    return make_database(postgres_url)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[LocalCluster]:
    with running_pair(tmp_path_factory.mktemp("chart"), database_url) as started:
        yield started


def test_helm_test_passes(cluster: LocalCluster) -> None:
    [test] = cluster.made.of("Pod")
    code, output = cluster.run_pod("test", test)
    assert code == 0, output
    assert "Who founded Orval Tech?" in output


WRITE = """
import errno, pathlib, tempfile
tempfile.TemporaryFile().close()
try:
    pathlib.Path(pathlib.__file__).touch()
except OSError as error:
    assert error.errno == errno.EROFS, error
else:
    raise SystemExit("it may write to its image")
"""


def test_pods_run_on_a_read_only_root(cluster: LocalCluster) -> None:
    """All of this module do: whatever they start with and do."""
    if not may_mount():
        pytest.skip("this machine lets us make no mount namespace")
    [test] = copy.deepcopy(cluster.made.of("Pod"))
    test["spec"]["containers"][0]["command"] = ["python3", "-c", WRITE]
    code, output = cluster.run_pod("writer", test)
    assert code == 0, output


@dataclass
class Load:
    """Callers that ask for one adaptation after the other and watch each to its end, and one that lists them."""

    target: str
    names: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    calls: int = 0
    longest: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        work = [self._adapt] * CALLERS + [self._list]
        self._threads = [threading.Thread(target=self._call, args=(each, i)) for i, each in enumerate(work)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, work: Any, number: int) -> None:
        with Client(self.target) as client:
            while not self._over.is_set():
                try:
                    work(client, number)
                except Exception as error:
                    self.failures.append(error)

    def _timed(self, call: Any, *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        answer = call(*arguments, **options)
        self.calls += 1
        self.longest = max(self.longest, time.monotonic() - started)
        return answer

    def _adapt(self, client: Client, number: int) -> None:
        [context] = as_messages(make_contexts(Surnames.TEST, 1, seed=1000 * number + len(self.names)))
        made = self._timed(
            client.create_adaptation,
            teacher="profiles/alpha",
            student="profiles/beta",
            title=context.title,
            passage=context.passage,
            questions=context.questions,
            self_edits=1,
            seeds=1,
            recipe=STUDENT_RECIPE,
        )
        self.names.append(made.name)
        for _ in client.watch_adaptation(made.name):
            self.calls += 1

    def _list(self, client: Client, _: int) -> None:
        self._timed(lambda: sum(1 for _ in client.list_adaptations()))
        time.sleep(0.02)


def test_a_rolling_update_under_load_fails_no_call(
    cluster: LocalCluster, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Load(cluster.target("rookery-coordinator", 7070)) as load:
        for name in ROLLED:
            done = len(load.names)
            cluster.roll(name)
            while len(load.names) < done + CALLERS and not load.failures:  # it goes on with the new ones
                time.sleep(0.1)
    assert load.failures == []
    with Client(load.target) as client:
        states = {client.get_adaptation(name).state for name in load.names}
    assert states == {STATE_SUCCEEDED}
    engine = create_engine(database_url)
    with engine.connect() as connection:
        again = connection.execute(text("SELECT kind, count(*) FROM jobs WHERE attempts > 0 GROUP BY kind")).all()
    engine.dispose()
    with capsys.disabled():
        sys.stdout.write(
            f"\n{load.calls} calls, {len(load.names)} adaptations while {', '.join(ROLLED)} were replaced; the longest "
            f"call took {load.longest:.2f} s; jobs that needed another attempt: {[tuple(row) for row in again]}\n"
        )


def test_what_ended_has_written_no_traceback(cluster: LocalCluster) -> None:
    for log in cluster.folder.glob("*/log"):
        assert "Traceback" not in log.read_text(), log
