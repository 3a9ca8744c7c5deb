"""Work whose owner is gone is found, also if he was never heard of, whatever the clocks of the processes say."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select, update

from rookery_coordinator import leases, outcomes
from rookery_coordinator.database import Database, now
from rookery_coordinator.reaper import Reaper
from rookery_coordinator.schema import migrate
from rookery_coordinator.tables import Job, Outbox
from rookery_coordinator.types import JobState
from rookery_shared.errors import StaleEpoch
from rookery_shared.metrics import FENCED_WRITES, LEASES_EXPIRED
from tests.integration.workers import Workers
from tests.integration.worlds import make_adaptation, make_profiles
from tests.requirements.removal import Removal
from tests.servers.postgres import make_database

LEASES = "services/rookery_coordinator/leases.py"
REMOVALS = [
    Removal(
        what="a lease without an end has run out",
        file=LEASES,
        old="func.coalesce(Job.lease_until, Job.start_time, 0.0) < now()",
        new="Job.lease_until < now()",
        test="test_a_job_that_nobody_ever_beat_for_is_found[sqlite]",
    ),
    Removal(
        what="times are the database's",
        file=LEASES,
        old="    job.worker = worker\n    job.lease_until = now() + lease_seconds",
        new="    job.worker = worker\n    job.lease_until = __import__('time').time() + lease_seconds",
        test="test_clocks_of_processes_do_not_count[sqlite]",
    ),
    Removal(
        what="of two reapers one sees to a job",
        file=LEASES,
        old="select(Job).where(Job.id == job_id, *_is_expired())",
        new="select(Job).where(Job.id == job_id)",
        test="test_two_reapers_queue_a_job_once[sqlite]",
    ),
    Removal(
        what="what was read before the lock is read again",
        file=LEASES,
        old="with_for_update().execution_options(populate_existing=True)\n    job =",
        new="with_for_update()\n    job =",
        test="test_a_result_that_waited_for_the_reaper_is_late",
    ),
    Removal(
        what="an overtaken job is announced again",
        file=LEASES,
        old="oldest.where(Job.queue_time < claimed)",
        new="oldest.where(Job.queue_time < 0.0)",
        test="test_a_lost_message_in_a_busy_queue_is_sent_again[sqlite]",
    ),
    Removal(
        what="a busy queue is tried with its youngest job",
        file=LEASES,
        old="there.order_by(Job.queue_time.desc())",
        new="there.order_by(Job.queue_time)",
        test="test_a_queue_without_a_free_slot_is_not_announced_over_and_over[sqlite]",
    ),
    Removal(
        what="a busy queue is tried with one job",
        file=LEASES,
        old="limit(1 if session.scalar(_is_busy(queue)) else PROBES)",
        new="limit(PROBES)",
        test="test_a_queue_without_a_free_slot_is_not_announced_over_and_over[sqlite]",
    ),
    Removal(
        what="of jobs announced again none has overtaken another",
        file=LEASES,
        old="values(state=JobState.QUEUED, queue_time=at)",
        new="values(state=JobState.QUEUED, queue_time=now())",
        test="test_jobs_that_are_announced_again_at_once_overtake_nobody[postgresql]",
    ),
    Removal(
        what="a message that is still to be sent is not lost",
        file=LEASES,
        old="~select(Outbox.id).where(Outbox.job == Job.id).exists(),",
        new="Job.epoch > 0,",
        test="test_what_the_broker_could_not_be_told_is_not_forgotten[sqlite]",
    ),
]


@pytest.fixture
def workers(database: Database) -> Workers:
    make_profiles(database)
    return Workers(database)


def some_jobs(database: Database, workers: Workers, count: int) -> list[tuple[str, int]]:
    """Generate jobs of one queue, in their order."""
    for _ in range(count):
        make_adaptation(database)
    return workers.messages()


def change(database: Database, job: str, **values: object) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job).values(**values))


def found_job(database: Database, job: str) -> Job:
    with database.read() as session:
        return session.get_one(Job, job)


def test_a_lease_that_ran_out_is_found_within_a_sweep(database: Database, workers: Workers) -> None:
    [(job, epoch)] = some_jobs(database, workers, 1)
    with database.write() as session:
        leases.claim(session, job, epoch=epoch, worker="w", lease_seconds=0.5)
    started, before = time.monotonic(), LEASES_EXPIRED._value.get()
    reaper = Reaper(database, forgotten_seconds=60)
    reaper.sweep()
    assert found_job(database, job).state is JobState.RUNNING or time.monotonic() - started > 0.5, "too early"
    while found_job(database, job).state is JobState.RUNNING:
        assert time.monotonic() - started < 20
        time.sleep(0.05)
        reaper.sweep()
    assert workers.messages() == [(job, epoch + 1)]
    assert LEASES_EXPIRED._value.get() == before + 1


def test_a_job_that_nobody_ever_beat_for_is_found(database: Database, workers: Workers) -> None:
    """Whatever has put it there: a running job without an end of its lease, or even without a start, is nobody's."""
    (first, epoch), (second, _) = some_jobs(database, workers, 2)
    for job in (first, second):
        workers.claim(job, epoch)
    change(database, first, lease_until=None)
    change(database, second, lease_until=None, start_time=None)
    Reaper(database, forgotten_seconds=60).sweep()
    assert {*workers.messages()} == {(first, epoch + 1), (second, epoch + 1)}


def test_clocks_of_processes_do_not_count(
    database: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator whose clock has stood still since 2000 claims, beats and reaps as every other one."""
    monkeypatch.setattr(time, "time", lambda: 946_684_800.0)
    [(job, epoch)] = some_jobs(database, workers, 1)
    workers.claim(job, epoch)
    reaper = Reaper(database, forgotten_seconds=60)
    reaper.sweep()
    assert workers.messages() == [], "its lease has just begun"
    with database.write() as session:
        assert not leases.heartbeat(session, job, epoch=epoch, lease_seconds=30.0, done=0, total=1)
    reaper.sweep()
    assert workers.messages() == []
    change(database, job, lease_until=now() - 1.0)
    reaper.sweep()
    assert workers.messages() == [(job, epoch + 1)]


def test_two_reapers_queue_a_job_once(database: Database, workers: Workers) -> None:
    [(job, epoch)] = some_jobs(database, workers, 1)
    workers.claim(job, epoch)
    change(database, job, lease_until=now() - 1.0)
    with database.read() as session:
        assert leases.expired(session) == [job]
    done = []
    for _ in range(2):  # both have seen it
        with database.write() as session:
            done.append(outcomes.abandon(session, job))
    assert done == [True, False]
    assert workers.messages() == [(job, epoch + 1)]


def test_a_result_that_waited_for_the_reaper_is_late(postgres_url: str) -> None:
    """Its row was read while it was its own, and had another epoch when it was locked."""
    database = Database(make_database(postgres_url))
    migrate(database)
    make_profiles(database)
    workers = Workers(database)
    [(job, epoch)] = some_jobs(database, workers, 1)
    workers.claim(job, epoch)
    before = FENCED_WRITES._value.get()
    with database.write() as session:
        read = session.get_one(Job, job)  # the session forgets what nobody holds
        assert read.epoch == epoch
        change(database, job, lease_until=now() - 1.0)
        Reaper(database, forgotten_seconds=60).sweep()
        with pytest.raises(StaleEpoch):
            leases.own(session, job, epoch=epoch)
    assert FENCED_WRITES._value.get() == before + 1
    database.close()


def test_a_lost_message_in_a_busy_queue_is_sent_again(database: Database, workers: Workers) -> None:
    """The first message is lost; later ones are claimed all the time."""
    lost, claimed, fresh, waiting = some_jobs(database, workers, 4)
    for age, (job, _) in ((20.0, lost), (18.0, claimed), (3.0, fresh), (16.0, waiting)):
        change(database, job, queue_time=now() - age)
    workers.claim(*claimed)
    workers.claim(*fresh)
    reaper = Reaper(database, forgotten_seconds=5.0)
    reaper.sweep()
    assert workers.messages() == [], "those that came after it have not been claimed for long"
    change(database, claimed[0], start_time=now() - 6.0)
    reaper.sweep()
    assert workers.messages() == [lost], "the other one was not overtaken: it may be in the queue"
    reaper.sweep()
    assert workers.messages() == [], "once is enough for a while"


def test_a_queue_without_a_free_slot_is_not_announced_over_and_over(database: Database, workers: Workers) -> None:
    """One job runs for long. The others' messages are with the broker, and none is lost."""
    running, *queued = some_jobs(database, workers, 6)
    workers.claim(*running)
    for age, (job, _) in zip((30.0, 29.0, 28.0, 27.0, 26.0), queued, strict=True):
        change(database, job, queue_time=now() - age)
    change(database, running[0], start_time=now() - 25.0, queue_time=now() - 31.0)
    reaper = Reaper(database, forgotten_seconds=5.0)
    reaper.sweep()
    assert workers.messages() == queued[-1:], "one, in case that they are lost"
    workers.claim(*queued[0])
    change(database, queued[0][0], start_time=now() - 6.0)
    reaper.sweep()
    assert workers.messages() == [], "it came in its turn"


def test_jobs_that_are_announced_again_at_once_overtake_nobody(database: Database, workers: Workers) -> None:
    jobs = some_jobs(database, workers, 20)
    for job, _ in jobs:
        change(database, job, queue_time=now() - 60.0)
    Reaper(database, forgotten_seconds=5.0).sweep()
    assert {*workers.messages()} == {*jobs}
    assert len({found_job(database, job).queue_time for job, _ in jobs}) == 1


def test_a_job_that_waits_for_its_next_attempt_overtakes_nobody(database: Database, workers: Workers) -> None:
    waiting, retried = some_jobs(database, workers, 2)
    change(database, waiting[0], queue_time=now() - 20.0)
    workers.claim(*retried)
    change(database, retried[0], start_time=now() - 10.0, state=JobState.QUEUED, queue_time=now() - 1.0)
    Reaper(database, forgotten_seconds=5.0).sweep()
    assert workers.messages() == []


def test_what_the_broker_could_not_be_told_is_not_forgotten(database: Database, workers: Workers) -> None:
    make_adaptation(database)
    with database.write() as session:
        session.execute(update(Job).values(queue_time=now() - 60.0))
    Reaper(database, forgotten_seconds=5.0).sweep()
    with database.read() as session:
        assert len(session.scalars(select(Outbox.id)).all()) == 1, "it waits in the outbox, once"
