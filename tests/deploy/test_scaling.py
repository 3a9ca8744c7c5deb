"""KEDA's queries, run in PostgreSQL on jobs as the coordinator makes them, give the replicas that the work needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest

from rookery_coordinator import leases
from rookery_coordinator.database import Database
from rookery_coordinator.policies import set_active
from rookery_coordinator.schema import migrate
from rookery_coordinator.submissions import create_profile
from rookery_coordinator.tables import Adaptation, Policy, Run
from rookery_coordinator.types import JobKind, JobState, Limits, Role, State
from rookery_coordinator.works import find_profile
from rookery_shared.jobs.queues import evaluate_queue, generate_queue, improve_queue, train_queue
from tests.deploy.charts import KEDA, STUDENT, TEACHER, render
from tests.servers.postgres import make_database

TEACHERS, STUDENTS = ("alpha", "gamma"), ("beta", "delta")
MADE = render(
    {
        "teachers": [{**TEACHER, "name": name} for name in TEACHERS],
        "students": [{**STUDENT, "name": name, "trainer": {"jobsAtOnce": 4, "keda": {"max": 32}}} for name in STUDENTS],
        "worker": {**KEDA, "concurrency": 8},
        "workloadDefaults": KEDA,
    }
)
SCALED = {m["metadata"]["name"].removeprefix("rookery-"): m["spec"] for m in MADE.of("ScaledObject")}
QUEUES = {
    JobKind.GENERATE: generate_queue(),
    JobKind.EVALUATE: evaluate_queue(),
    JobKind.TRAIN: train_queue("profiles/beta"),
    JobKind.IMPROVE: improve_queue("profiles/alpha"),
}


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """With two teachers, two students, a run of the first two, and an adaptation of the others."""
    opened = Database(make_database(postgres_url))
    migrate(opened)
    with opened.write() as session:
        for names, role in ((TEACHERS, Role.TEACHER), (STUDENTS, Role.STUDENT)):
            for name in names:
                profile: dict[str, Any] = {
                    "name": f"profiles/{name}",
                    "role": role,
                    "source": "m",
                    "revision": "",
                    "chat": False,
                }
                create_profile(session, engine="transformers", dtype="float32", limits=Limits(), **profile)
    with opened.write() as session:
        work: dict[str, Any] = {"policy": 0, "plan": {}, "state": State.RUNNING}
        session.add(Run(name="runs/one", teacher="profiles/alpha", student="profiles/beta", **work))
        session.add(Adaptation(name="adaptations/two", teacher="profiles/gamma", student="profiles/delta", **work))
    yield opened
    opened.close()


def add(
    database: Database, kind: JobKind, state: JobState, *, parent: str = "runs/one", queue: str = "", count: int = 1
) -> None:
    """Jobs, as the coordinator brings them into their state."""
    for _ in range(count):
        with database.write() as session:
            new = leases.NewJob(
                kind=kind, queue=queue or QUEUES[kind], parent=parent, round=None, held=state is JobState.HELD
            )
            job = leases.enqueue(session, new)
            session.flush()
            if state in (JobState.RUNNING, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
                leases.claim(session, job.id, epoch=1, worker="w", lease_seconds=30)
            if state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
                leases.finish(session, job, state)


def replicas(database: Database, *, role: str = "") -> Mapping[str, int]:
    """What KEDA would make of its queries. It knows a database by libpq's URL, whose scheme has no driver in it."""
    found = {}
    with psycopg.connect(database.url.replace("postgresql+psycopg://", "postgresql://", 1)) as connection:
        if role:
            connection.execute(f"SET ROLE {role}")
        for name, spec in SCALED.items():
            (trigger,) = spec["triggers"]
            assert trigger["type"] == "postgresql"
            rows = connection.execute(trigger["metadata"]["query"]).fetchall()
            assert len(rows) == len(rows[0]) == 1
            wanted = math.ceil(rows[0][0] / float(trigger["metadata"]["targetQueryValue"]))
            active = rows[0][0] > float(trigger["metadata"]["activationTargetQueryValue"])
            least = spec["minReplicaCount"] if not active else max(spec["minReplicaCount"], 1)
            found[name] = min(max(wanted, least), spec["maxReplicaCount"])
    return {name: count for name, count in found.items() if count}


def test_every_workload_but_the_coordinator_is_scaled() -> None:
    profiles = {f"{kind}-{name}" for kind in ("teacher", "trainer") for name in TEACHERS}
    profiles |= {f"{kind}-{name}" for kind in ("student", "evaluator") for name in STUDENTS}
    assert {*SCALED} == profiles | {"worker"}


def test_nothing_runs_at_rest(database: Database) -> None:
    assert replicas(database) == {}
    for kind in QUEUES:
        for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.HELD):
            add(database, kind, state)
    assert replicas(database) == {}


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_each_kind_of_work_wakes_those_who_do_it(database: Database, state: JobState) -> None:
    """The student's server is nobody's for training; nobody of the other profiles is."""
    add(database, JobKind.GENERATE, state)
    assert replicas(database) == {"worker": 1, "teacher-alpha": 1}
    add(database, JobKind.TRAIN, state)
    assert replicas(database) == {"worker": 1, "teacher-alpha": 1, "student-beta": 1}
    add(database, JobKind.EVALUATE, state)
    assert replicas(database) == {"worker": 1, "teacher-alpha": 1, "student-beta": 1, "evaluator-beta": 1}
    add(database, JobKind.IMPROVE, state)
    assert replicas(database)["trainer-alpha"] == 1


def test_an_adaptation_wakes_its_own_profiles(database: Database) -> None:
    add(database, JobKind.GENERATE, JobState.QUEUED, parent="adaptations/two")
    add(database, JobKind.EVALUATE, JobState.RUNNING, parent="adaptations/two")
    add(database, JobKind.TRAIN, JobState.QUEUED, parent="adaptations/two", queue=train_queue("profiles/delta"))
    assert replicas(database) == {"worker": 1, "teacher-gamma": 1, "evaluator-delta": 1, "student-delta": 1}


def test_a_teacher_wakes_to_load_its_active_policy(database: Database) -> None:
    with database.write() as session:
        session.add(Policy(profile="profiles/gamma", version=1, adapter="adapters/x"))
        session.flush()
        set_active(session, find_profile(session, "profiles/gamma"), 1)
    assert replicas(database) == {"worker": 1, "teacher-gamma": 1}


def test_replicas_follow_the_jobs_to_the_most(database: Database) -> None:
    """A student takes four at once, a worker eight; both waiting and running count."""
    add(database, JobKind.TRAIN, JobState.RUNNING, count=4)
    assert replicas(database) == {"student-beta": 1}
    add(database, JobKind.TRAIN, JobState.QUEUED, count=1)
    assert replicas(database) == {"student-beta": 2}
    add(database, JobKind.TRAIN, JobState.QUEUED, count=60)
    assert replicas(database) == {"student-beta": 17}
    add(database, JobKind.TRAIN, JobState.QUEUED, count=100)
    assert replicas(database) == {"student-beta": 32}
    add(database, JobKind.GENERATE, JobState.QUEUED, count=9)
    assert replicas(database) == {"student-beta": 32, "worker": 2, "teacher-alpha": 2}


def test_a_user_who_may_read_three_tables_is_enough(database: Database) -> None:
    add(database, JobKind.EVALUATE, JobState.QUEUED)
    with psycopg.connect(database.url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute("CREATE ROLE scaler")
        try:
            connection.execute("GRANT SELECT ON jobs, runs, adaptations TO scaler")
            assert replicas(database, role="scaler") == {"worker": 1, "evaluator-beta": 1}
            connection.execute("REVOKE SELECT ON runs FROM scaler")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                replicas(database, role="scaler")
        finally:
            connection.execute("DROP OWNED BY scaler")
            connection.execute("DROP ROLE scaler")
