"""A message may come any number of times: its job is done once and has one effect. What came too often is counted."""

from __future__ import annotations

import signal

from rookery_coordinator.types import JobState
from tests.requirements.light import SELF_EDITS, Light
from tests.requirements.removal import Removal
from tests.waiting import wait_until

LEASES = "services/rookery_coordinator/leases.py"
REMOVALS = [
    Removal(
        what="a job that runs or has ended cannot be claimed",
        file=LEASES,
        old="if job.state is not JobState.QUEUED and not (job.state is JobState.RUNNING and job.worker == worker):\n",
        new="if False:\n",
        test="test_repeated_messages_have_one_effect[redis]",
    ),
    Removal(
        what="a claim is of one message, not of one worker",
        file="shared/rookery_shared/jobs/runner.py",
        old='f"{self._worker}/{uuid.uuid4().hex[:8]}"',
        new="self._worker",
        test="test_a_worker_does_not_take_its_own_job_again",
    ),
    Removal(
        what="duplicates are counted",
        file=LEASES,
        old="""        metrics.DUPLICATE_DELIVERIES.inc()
        raise JobNotQueued(""",
        new="        raise JobNotQueued(",
        test="test_repeated_messages_have_one_effect[rabbitmq]",
    ),
]


def test_repeated_messages_have_one_effect(light: Light) -> None:
    before = light.coordinator.counted("rookery_duplicate_delivery_total")
    jobs = light.submit(0.5, 0.5, 0.5)
    for _ in range(2):  # while they wait
        light.announce_again(jobs)
    worker = light.start_worker()
    wait_until(lambda: light.starts(jobs[0]), seconds=60, what="the first starts")
    light.announce_again(jobs)  # while they run
    light.finish(jobs, seconds=60)
    light.announce_again(jobs)  # when they have ended
    wait_until(lambda: light.duplicates(jobs) >= 4 * len(jobs), seconds=60, what="all messages are taken")
    assert light.duplicates(jobs) == 4 * len(jobs)
    counted = light.coordinator.counted("rookery_duplicate_delivery_total") - before
    assert counted >= 4 * len(jobs), "these, and what other tests may have left with the broker"
    assert [light.starts(job) for job in jobs] == [1, 1, 1]
    assert light.effects(jobs) == [SELF_EDITS] * 3
    assert light.epochs(jobs) == [1, 1, 1]
    assert worker.alive


def test_a_worker_does_not_take_its_own_job_again(light_redis: Light) -> None:
    light = light_redis
    light.start_worker(slots=2)
    [job] = light.submit(2)
    wait_until(lambda: light.starts(job), seconds=60, what="it starts")
    light.announce_again([job])
    wait_until(lambda: light.duplicates([job]) or light.starts(job) > 1, seconds=60, what="the message is taken")
    light.finish([job], seconds=60)
    assert light.starts(job) == 1


def test_redis_delivers_again_what_still_runs(light_redis: Light) -> None:
    """Forced: the worker acknowledges late, and the broker waits three seconds."""
    light = light_redis
    options = {"visibility_timeout": 3, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    for _ in range(2):
        light.start_worker(options=options, acks_late=True)
    [job] = light.submit(10)
    wait_until(lambda: light.duplicates([job]), seconds=60, what="the broker delivers it again")
    assert light.states([job]) == [JobState.RUNNING]
    light.finish([job], seconds=60)
    assert light.starts(job) == 1
    assert light.effects([job]) == [SELF_EDITS]


def test_rabbitmq_delivers_again_what_a_killed_worker_had(light_rabbitmq: Light) -> None:
    """Forced: the worker acknowledges late and is killed. Its lease still holds when the message comes again."""
    light = light_rabbitmq
    workers = [light.start_worker(acks_late=True) for _ in range(2)]
    [job] = light.submit(2)
    wait_until(lambda: light.starts(job), seconds=60, what="it starts")
    [victim] = [worker for worker in workers if worker.server.pid == light.journal()[-1]["pid"]]
    victim.server.end(signal.SIGKILL)
    wait_until(lambda: light.duplicates([job]), seconds=60, what="the broker delivers it again")
    light.finish([job], seconds=60)
    assert light.starts(job) == 2
    assert light.epochs([job]) == [2], "it was done again when its lease had run out, and for no other reason"
    assert light.effects([job]) == [SELF_EDITS]
