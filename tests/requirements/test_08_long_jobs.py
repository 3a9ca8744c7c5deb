"""A job may take longer than the broker's timeouts: it runs once, the worker lives, and the next job waits its turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import accumulate

import pytest

from rookery_coordinator.types import JobState
from tests.faults.proxy import Proxy
from tests.requirements.light import SELF_EDITS, Light, Process
from tests.requirements.removal import Removal
from tests.servers.rabbitmq import RabbitMQServer, waiting
from tests.waiting import wait_until

CONSUMING = "shared/rookery_shared/jobs/consuming.py"
QUEUES = "shared/rookery_shared/jobs/queues.py"
REMOVALS = [
    Removal(
        what="a worker without a free slot consumes nothing",
        file=CONSUMING,
        old="                self.task_consumer.cancel()\n",
        new="                pass\n",
        test="test_rabbitmq_is_not_kept_waiting",
    ),
    Removal(
        what="nor when it connects again",
        file=CONSUMING,
        old="        if self.has_free_slot():\n            for queue",
        new="        if True:\n            for queue",
        test="test_a_busy_worker_holds_nothing",
    ),
    Removal(
        what="RabbitMQ's messages are acknowledged early",
        file=QUEUES,
        old="task_acks_late=False",
        new="task_acks_late=rabbitmq",
        test="test_rabbitmq_is_not_kept_waiting",
    ),
    Removal(
        what="Redis's messages are acknowledged early",
        file=QUEUES,
        old="task_acks_late=False",
        new="task_acks_late=True",
        test="test_redis_does_not_deliver_again",
    ),
    Removal(
        what="no prefetch on Redis",
        file=QUEUES,
        old="worker_disable_prefetch=not rabbitmq",
        new="worker_disable_prefetch=False",
        test="test_an_idle_worker_takes_what_waits[redis]",
    ),
    Removal(
        what="to consume waits for no answer",
        file=CONSUMING,
        old="self._basic_consume(queue, no_ack=no_ack, nowait=True)",
        new="super().consume(no_ack=no_ack)",
        test="test_two_queues_share_the_slots",
    ),
    Removal(
        what="one message at a time on RabbitMQ",
        file=CONSUMING,
        old="            self.initial_prefetch_count = 1\n",
        new="            self.initial_prefetch_count = 4\n",
        test="test_a_busy_worker_holds_nothing",
    ),
]


@pytest.fixture
def impatient_rabbitmq(rabbitmq_server: RabbitMQServer) -> Iterator[None]:
    """Channels that are opened now may leave messages unacknowledged for 3 seconds."""
    rabbitmq_server.set_patience(milliseconds=3_000, looks_every=1_000)
    yield
    rabbitmq_server.set_patience(milliseconds=61_000, looks_every=60_000)


def watch(light: Light, worker: Process, jobs: list[str], *, seconds: float) -> None:
    """Until the jobs are done, with each started once and the worker alive all the time."""
    deadline = time.monotonic() + seconds
    while any(state is not JobState.SUCCEEDED for state in light.states(jobs)):
        assert worker.alive, worker.log.read_text()
        assert all(light.starts(job) <= 1 for job in jobs), light.journal()
        assert time.monotonic() < deadline, (light.states(jobs), worker.log.read_text())
        time.sleep(0.2)
    assert worker.alive
    assert [light.starts(job) for job in jobs] == [1] * len(jobs)
    assert light.epochs(jobs) == [1] * len(jobs)
    assert light.effects(jobs) == [SELF_EDITS] * len(jobs)
    log = worker.log.read_text()
    assert "(406" not in log
    assert "PRECONDITION" not in log.upper()


def started(light: Light, job: str) -> None:
    wait_until(lambda: light.starts(job), seconds=60, what=f"{job} starts")


def test_a_job_longer_than_any_timeout_runs_once(light_redis: Light, light_rabbitmq: Light) -> None:
    """As long as it takes: RabbitMQ with a consumer_timeout of 61 s looks once a minute, so the job takes 150 s."""
    visibility = {"visibility_timeout": 6, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    on_redis = light_redis.start_worker(options=visibility)
    on_rabbitmq = light_rabbitmq.start_worker()
    redis_jobs, rabbitmq_jobs = light_redis.submit(150, 0.1), light_rabbitmq.submit(150, 0.1)
    watch(light_redis, on_redis, redis_jobs, seconds=240)
    watch(light_rabbitmq, on_rabbitmq, rabbitmq_jobs, seconds=60)


def test_rabbitmq_is_not_kept_waiting(impatient_rabbitmq: None, light_rabbitmq: Light) -> None:
    worker = light_rabbitmq.start_worker()
    watch(light_rabbitmq, worker, light_rabbitmq.submit(8, 0.1), seconds=60)


def test_redis_does_not_deliver_again(light_redis: Light) -> None:
    visibility = {"visibility_timeout": 2, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    workers = [light_redis.start_worker(options=visibility) for _ in range(2)]
    jobs = light_redis.submit(6, 0.1)
    watch(light_redis, workers[0], jobs, seconds=60)
    assert light_redis.duplicates(jobs) == 0


def test_an_idle_worker_takes_what_waits(light: Light) -> None:
    busy = light.start_worker()
    [long] = light.submit(60)
    started(light, long)
    [short] = light.submit(0.1)
    wait_until(lambda: light.unsent([short]) == 0, seconds=10, what="the message is sent")
    light.start_worker()
    light.finish([short], seconds=60)
    assert light.states([long]) == [JobState.RUNNING], "another worker did it, while the first one was busy"
    assert busy.alive
    light.cancel(long)


def test_a_busy_worker_holds_nothing(light_rabbitmq: Light) -> None:
    """Neither when it has taken its job, nor when it has lost its connection and connects again."""
    light = light_rabbitmq
    address = light.broker_url.split("@")[1].split("/")[0]
    long, *short = light.submit(60, 0.1, 0.1)
    wait_until(lambda: light.unsent([long, *short]) == 0, seconds=60, what="all are in the queue")
    with Proxy(address) as proxy:
        light.start_worker(broker_url=light.broker_url.replace(address, proxy.address))
        started(light, long)
        time.sleep(1)  # what it might take, it has taken; its own message is acknowledged
        assert waiting(light.broker_url, "generate") == len(short), "they wait for any worker"
        connected = proxy.accepted
        proxy.cut()
        wait_until(lambda: proxy.accepted > connected, seconds=30, what="the worker connects again")
        time.sleep(1)
        assert waiting(light.broker_url, "generate") == len(short), "they wait for any worker"
        assert light.states([long]) == [JobState.RUNNING]
        light.cancel(long)
        light.finish(short, seconds=60)


def test_two_queues_share_the_slots(light_rabbitmq: Light) -> None:
    light = light_rabbitmq
    worker = light.start_worker(slots=2, queues=["generate", "other"])
    jobs = light.submit(*[0.3] * 8) + light.submit(*[0.3] * 8, queue="other")
    light.finish(jobs, seconds=60)
    changes = [(e["time"], 1) for e in light.journal() if e["job"] in jobs]
    changes += [(e["time"], -1) for e in light.journal("ended") if e["job"] in jobs]
    at_once = max(accumulate(change for _, change in sorted(changes)))
    assert 2 <= at_once <= 3, "one more than the slots only if both queues deliver in the same moment"
    assert worker.alive
    assert "Rejecting" not in worker.log.read_text(), "nothing is put back"
