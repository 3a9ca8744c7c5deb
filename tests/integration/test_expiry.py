"""Adapters that expire while somebody comes to need them: one of the two waits for the other, or takes note of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from rookery_coordinator import aliases, outcomes
from rookery_coordinator.database import Database, now
from rookery_coordinator.references import Expiry
from rookery_coordinator.tables import Adaptation, Adapter, Job, Round, Trial
from rookery_coordinator.types import JobKind, JobState
from tests.integration.workers import Workers
from tests.integration.worlds import make_adaptation, make_profiles

DAY = 86_400.0


@pytest.fixture
def workers(database: Database) -> Workers:
    """An adaptation has ended, days ago. Of its adapters one was chosen; nothing needs the others."""
    make_profiles(database)
    workers = Workers(database)
    make_adaptation(database)
    workers.run_all()
    with database.write() as session:
        session.execute(update(Adapter).values(create_time=now() - 3 * DAY))
    return workers


@contextmanager
def expiring(database: Database) -> Iterator[Callable[[], None]]:
    """What was done before is not committed when adapters expire; a call waits until they have, if they can."""
    sweeper = threading.Thread(target=Expiry(database, days=2).sweep)

    def sweep() -> None:
        sweeper.start()
        sweeper.join(1.0)  # SQLite has it wait for the transaction that is open

    yield sweep
    sweeper.join()


def adapters(session: Session) -> set[str]:
    return {*session.scalars(select(Adapter.name))}


def reused(session: Session, adaptation: str) -> list[str | None]:
    return [*session.scalars(select(Trial.adapter).join(Round).where(Round.parent == adaptation))]


def test_an_adapter_that_is_reused_does_not_expire(database: Database, workers: Workers) -> None:
    again = make_adaptation(database)
    [(job, epoch)] = workers.messages()
    workers.claim(job, epoch)
    with expiring(database) as sweep, database.write() as session:
        outcomes.complete(session, job, epoch=epoch, apply=workers._apply)
        session.flush()
        sweep()
    with database.read() as session:
        assert all(reused(session, again))
        assert {*reused(session, again)} <= adapters(session)


def test_an_adapter_that_has_expired_is_made_again(database: Database, workers: Workers) -> None:
    again = make_adaptation(database)
    Expiry(database, days=2).sweep()
    [(job, epoch)] = workers.messages()
    workers.do(job, epoch)
    with database.read() as session:
        [chosen] = session.scalars(select(Trial.adapter).join(Adaptation, Adaptation.trial == Trial.id))
        assert adapters(session) == {chosen}
        assert sum(name is not None for name in reused(session, again)) == 1
        made = session.scalars(select(Job).where(Job.parent == again, Job.kind == JobKind.TRAIN)).all()
        assert [made_by.state for made_by in made] == [JobState.QUEUED] * len(made)
        assert made


def test_an_adapter_that_is_promoted_does_not_expire(database: Database, workers: Workers) -> None:
    with database.read() as session:
        [chosen] = session.scalars(select(Trial.adapter).join(Adaptation, Adaptation.trial == Trial.id))
        other = min(adapters(session) - {chosen})
    with expiring(database) as sweep, database.write() as session:
        aliases.promote(session, other, aliases.GOLDEN, expected=None)
        session.flush()
        sweep()
    with database.read() as session:
        assert adapters(session) == {chosen, other}
