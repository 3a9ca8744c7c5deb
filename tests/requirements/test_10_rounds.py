"""The round state machine: every transition happens once, whatever dies in it, comes late, comes twice or is paused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from rookery_coordinator import leases, outcomes, rounds
from rookery_coordinator.database import Database, now
from rookery_coordinator.reaper import Reaper
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Event, Job, Outbox, Policy, Round, SelfEdit, Trial
from rookery_coordinator.types import Failure, JobState, Reward, RunPlan, State, TrialState
from rookery_coordinator.works import find_run
from rookery_shared.errors import JobNotQueued, StaleEpoch
from tests.integration.workers import Workers
from tests.integration.worlds import make_profiles, make_run
from tests.requirements.removal import Removal

PLAN = RunPlan(rounds=2, self_edits=2, seeds=1, test_self_edits=1, reward=Reward.EXACT, control=True)
TRIALS = 2 * 2 + 5 * 1
"""Two train rounds of a context with 2 self-edits; baseline and four tests of one context."""
POLICIES = 1 + 2 + 2
OPEN_TRIES = 3
"""Retryable failures of a job in one example: fewer than end a job."""

LEASES, OUTCOMES = "services/rookery_coordinator/leases.py", "services/rookery_coordinator/outcomes.py"
MACHINE = "test_any_history_ends_in_the_same_rounds"
REMOVALS = [
    Removal(
        what="a result that comes twice is applied once",
        file=OUTCOMES,
        old="if job is not None and job.state is JobState.SUCCEEDED and job.epoch == epoch:",
        new="if False:",
        test="test_a_result_that_comes_twice_is_applied_once",
    ),
    Removal(
        what="a late result is refused",
        file=LEASES,
        old="if job.epoch != epoch or job.state is not JobState.RUNNING:",
        new="if job.state is not JobState.RUNNING:",
        test="test_a_late_result_is_refused_though_another_works_on_the_job",
    ),
    Removal(
        what="a round waits for all of its jobs",
        file="services/rookery_coordinator/rounds.py",
        old="if round_.state is not State.RUNNING or session.scalar(is_open):",
        new="if round_.state is not State.RUNNING:",
        test="test_every_transition_may_die_before_its_commit",
    ),
    Removal(
        what="what follows while a run is paused is held",
        file="services/rookery_coordinator/rounds.py",
        old="    held = work.state is State.PAUSED",
        new="    held = False",
        test="test_while_a_run_is_paused_nothing_follows",
    ),
    Removal(
        what="pausing holds what is queued",
        file="services/rookery_coordinator/rounds.py",
        old="    leases.hold(session, work.name)",
        new="    pass",
        test=MACHINE,
    ),
]


class Died(Exception):
    """The coordinator, before it could commit."""


@cache
def empty_database() -> Path:
    """A file with the schema and the profiles, to be copied."""
    path = Path(tempfile.mkdtemp(prefix="rookery-rounds-")) / "empty.db"
    database = Database(f"sqlite:///{path}")
    migrate(database)
    make_profiles(database)
    database.close()
    return path


@contextmanager
def a_run() -> Iterator[tuple[Database, Workers, str]]:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_database(), Path(folder) / "rookery.db")
        database = Database(f"sqlite:///{folder}/rookery.db")
        yield database, Workers(database), make_run(database, PLAN, train=2, test=1)
        database.close()


def check_end(database: Database, run: str) -> None:
    """The run has succeeded, and each of its rounds was started, worked off and ended once."""
    with database.read() as session:
        assert find_run(session, run).state is State.SUCCEEDED
        found = session.scalars(select(Round).where(Round.parent == run)).all()
        assert {round_.state for round_ in found} == {State.SUCCEEDED}
        told = session.scalars(select(Event.message).where(Event.parent == run)).all()
        for round_ in found:
            for what in ("started", "done"):
                assert told.count(f"round {round_.position} ({round_.purpose.value}) {what}") == 1
        assert session.scalar(select(func.count(Trial.id))) == TRIALS
        assert {*session.scalars(select(Trial.state))} == {TrialState.SCORED}
        assert session.scalar(select(func.count()).select_from(Policy)) == POLICIES
        assert {*session.scalars(select(Job.state))} == {JobState.SUCCEEDED}
        written = sum(r.contexts * r.self_edits for r in found if r.self_edits_from is None)
        assert session.scalar(select(func.count(SelfEdit.id))) == written


@contextmanager
def dying(database: Database) -> Iterator[Session]:
    """All is done but the commit."""
    with suppress(Died), database.write() as session:
        yield session
        session.flush()
        raise Died


def test_every_transition_may_die_before_its_commit() -> None:
    """Each claim and each result is tried first by a coordinator that dies just before its commit."""
    with a_run() as (database, workers, run):
        while messages := workers.messages():
            for job, epoch in messages:
                with dying(database) as session:
                    leases.claim(session, job, epoch=epoch, worker="w", lease_seconds=30.0)
                workers.claim(job, epoch)
                before = rows(database)
                with dying(database) as session:
                    outcomes.complete(session, job, epoch=epoch, apply=workers._apply)
                assert rows(database) == before, "nothing of it is left"
                workers.complete(job, epoch)
        check_end(database, run)


def test_a_result_that_comes_twice_is_applied_once() -> None:
    with a_run() as (database, workers, _):
        job, epoch = workers.messages()[0]
        workers.claim(job, epoch)
        workers.complete(job, epoch)
        before = rows(database)
        workers.complete(job, epoch)
        assert rows(database) == before


def test_a_late_result_is_refused_though_another_works_on_the_job() -> None:
    with a_run() as (database, workers, _):
        job, epoch = workers.messages()[0]
        workers.claim(job, epoch)
        with database.write() as session:
            session.execute(update(Job).where(Job.id == job).values(lease_until=now() - 1.0))
        Reaper(database, forgotten_seconds=60).sweep()
        workers.claim(job, epoch + 1)
        before = rows(database)
        with pytest.raises(StaleEpoch):
            workers.complete(job, epoch)
        assert rows(database) == before


def test_while_a_run_is_paused_nothing_follows() -> None:
    with a_run() as (database, workers, run):
        for job, epoch in (begun := workers.messages()):
            workers.claim(job, epoch)
        with database.write() as session:
            rounds.pause_work(session, find_run(session, run, lock=True))
        for job, epoch in begun:
            workers.complete(job, epoch)
        assert workers.messages() == []
        with database.write() as session:
            rounds.resume_work(session, find_run(session, run, lock=True))
        workers.run_all()
        check_end(database, run)


def rows(database: Database) -> list[int]:
    with database.read() as session:
        return [
            session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Job, Trial, SelfEdit, Policy, Outbox, Event)
        ]


class Rounds(RuleBasedStateMachine):
    """A run, its messages, and workers that do with them what they like."""

    @initialize()
    def begin(self) -> None:
        self._context = a_run()
        self.database, self.workers, self.run = self._context.__enter__()
        self.messages: list[tuple[str, int]] = []
        """Sent, and perhaps claimed since; a broker may deliver any of them again."""
        self.results: list[tuple[str, int]] = []
        """Claims that were granted, whatever has become of them."""
        self.failures: dict[str, int] = {}

    def _picked(self, number: int) -> tuple[str, int]:
        return self.messages[number % len(self.messages)]

    @rule()
    def relay(self) -> None:
        self.messages += self.workers.messages()

    @precondition(lambda self: self.messages)
    @rule(number=st.integers(0, 1000), dies=st.booleans())
    def deliver(self, number: int, dies: bool) -> None:
        """A message that may be old, or have come before."""
        job, epoch = self._picked(number)
        try:
            with self.database.write() as session:
                leases.claim(session, job, epoch=epoch, worker=f"w{number}", lease_seconds=30.0)
                assert find_run(session, self.run).state is not State.PAUSED, "nothing starts while it is paused"
                if dies:
                    raise Died
        except (JobNotQueued, StaleEpoch, Died):
            return
        self.results.append((job, epoch))

    @precondition(lambda self: self.messages)
    @rule(number=st.integers(0, 1000))
    def lose(self, number: int) -> None:
        self.messages.remove(self._picked(number))

    @precondition(lambda self: self.results)
    @rule(number=st.integers(0, 1000), dies=st.booleans())
    def complete(self, number: int, dies: bool) -> None:
        """With a result that may be late, or the same again."""
        job, epoch = self.results[number % len(self.results)]
        stale, done = self._is_stale(job, epoch), self._succeeded(job, epoch)
        before = rows(self.database)
        try:
            with self.database.write() as session:
                outcomes.complete(session, job, epoch=epoch, apply=self.workers._apply)
                session.flush()
                if dies:
                    raise Died
        except Died:
            assert rows(self.database) == before
        except StaleEpoch:
            assert stale
            assert rows(self.database) == before
        else:
            assert not stale
            assert not done or rows(self.database) == before

    @precondition(lambda self: self.results)
    @rule(number=st.integers(0, 1000))
    def fail(self, number: int) -> None:
        job, epoch = self.results[number % len(self.results)]
        if self.failures.get(job, 0) == OPEN_TRIES:
            return
        failure = Failure(reason="BAD_LUCK", message="again")
        try:
            with self.database.write() as session:
                outcomes.report_failure(session, job, epoch=epoch, failure=failure, retryable=True)
        except StaleEpoch:
            return
        self.failures[job] = self.failures.get(job, 0) + 1

    @precondition(lambda self: self.results)
    @rule(number=st.integers(0, 1000))
    def vanish(self, number: int) -> None:
        """Whoever had it is not heard of again."""
        job, _ = self.results[number % len(self.results)]
        if self.failures.get(job, 0) == OPEN_TRIES:
            return
        with self.database.write() as session:
            running = (Job.id == job, Job.state == JobState.RUNNING)
            lost = session.execute(update(Job).where(*running).values(lease_until=now() - 1.0))
            self.failures[job] = self.failures.get(job, 0) + lost.rowcount  # type: ignore[attr-defined]  # of an UPDATE
        Reaper(self.database, forgotten_seconds=60).sweep()

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause: bool) -> None:
        with self.database.write() as session:
            change = rounds.pause_work if pause else rounds.resume_work
            change(session, find_run(session, self.run, lock=True))

    @invariant()
    def no_round_runs_ahead(self) -> None:
        with self.database.read() as session:
            found = {round_.id: round_ for round_ in session.scalars(select(Round).where(Round.parent == self.run))}
            for round_ in found.values():
                before = found.get(round_.after or "")
                if round_.state is not State.WAITING and before is not None:
                    assert before.state is State.SUCCEEDED
                    assert before.next_policy is not None
            keys = session.execute(select(Trial.self_edit, Trial.position)).all()
            assert len({tuple(key) for key in keys}) == len(keys), "no trial twice"

    def teardown(self) -> None:
        """Everything that was lost is sent again, and the run goes to its end."""
        if not hasattr(self, "run"):
            return
        try:
            with self.database.write() as session:
                rounds.resume_work(session, find_run(session, self.run, lock=True))
                session.execute(update(Job).where(Job.state == JobState.RUNNING).values(lease_until=now() - 1.0))
            Reaper(self.database, forgotten_seconds=60).sweep()
            self.workers.messages()
            with self.database.write() as session:
                announce_queued(session)
            self.workers.run_all()
            check_end(self.database, self.run)
        finally:
            self._context.__exit__(None, None, None)

    def _is_stale(self, job: str, epoch: int) -> bool:
        with self.database.read() as session:
            row = session.get_one(Job, job)
            return row.epoch != epoch or row.state not in (JobState.RUNNING, JobState.SUCCEEDED)

    def _succeeded(self, job: str, epoch: int) -> bool:
        with self.database.read() as session:
            row = session.get_one(Job, job)
            return row.state is JobState.SUCCEEDED


def announce_queued(session: Session) -> None:
    for job in session.scalars(select(Job).where(Job.state == JobState.QUEUED)):
        session.add(Outbox(job=job.id, epoch=job.epoch, queue=job.queue))


def test_any_history_ends_in_the_same_rounds() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    few = settings(
        max_examples=8,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    run_state_machine_as_test(Rounds, settings=few)
