"""A worker that is alive but no longer hears its broker hears it again by itself, or ends."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from kombu.exceptions import OperationalError

from rookery_shared.jobs.consuming import STUCK_EXIT_CODE
from rookery_shared.jobs.queues import SILENCE_SECONDS, announce, make_app
from tests.faults.proxy import Proxy
from tests.requirements.light import Light
from tests.requirements.removal import Removal
from tests.waiting import wait_until

CONSUMING = "shared/rookery_shared/jobs/consuming.py"
QUEUES = "shared/rookery_shared/jobs/queues.py"
REMOVALS = [
    Removal(
        what="AMQP's heartbeats",
        file=QUEUES,
        old="broker_heartbeat=HEARTBEAT_SECONDS",
        new="broker_heartbeat=0",
        test="test_consumes_again_after_silence",
    ),
    Removal(
        what="checks of Redis's answers",
        file=QUEUES,
        old='    "health_check_interval": 10,\n',
        new='    "health_check_interval": 600,\n',
        test="test_consumes_again_after_silence",
    ),
    Removal(
        what="what was asked in vain is asked again on a new connection to Redis",
        file=QUEUES,
        old='    "retry_on_timeout": True,\n',
        new="",
        test="test_consumes_again_after_silence",
    ),
    Removal(
        what="what is published to RabbitMQ is waited for no longer than that",
        file=QUEUES,
        old='    "read_timeout": SILENCE_SECONDS,\n',
        new="",
        test="test_publishes_again_after_silence",
    ),
    Removal(
        what="what is published to Redis is waited for no longer than that",
        file=QUEUES,
        old='    "socket_timeout": SILENCE_SECONDS / 2,\n',
        new="",
        test="test_publishes_again_after_silence",
    ),
    Removal(
        what="the watchdog",
        file=CONSUMING,
        old="                os._exit(STUCK_EXIT_CODE)\n",
        new="                pass\n",
        test="test_a_stuck_worker_ends",
    ),
]


def behind(stack: ExitStack, light: Light) -> tuple[Proxy, str]:
    """A proxy before the broker, and the broker's URL through it."""
    address = light.broker_url.rpartition("@")[2].removeprefix("redis://").split("/")[0]
    proxy = stack.enter_context(Proxy(address))
    return proxy, light.broker_url.replace(address, proxy.address)


def test_consumes_again_after_silence(light_redis: Light, light_rabbitmq: Light) -> None:
    """A connection that a firewall has forgotten: nothing comes, nothing fails, for ever."""
    with ExitStack() as stack:
        jobs: dict[str, list[str]] = {}
        for light in (light_redis, light_rabbitmq):
            proxy, url = behind(stack, light)
            light.start_worker(broker_url=url)
            light.finish(light.submit(0), seconds=60)
            proxy.half_open()
            proxy.heal()  # those who connect again are heard
            time.sleep(1.5)  # Redis gives up on the question of before; what it answers to the deaf is lost
            jobs[light.broker_url] = light.submit(0)
        silent = time.monotonic()
        for light in (light_redis, light_rabbitmq):
            light.finish(jobs[light.broker_url], seconds=4 * SILENCE_SECONDS)
            assert light.processes[-1].alive
        assert time.monotonic() - silent < 4 * SILENCE_SECONDS


def test_publishes_again_after_silence(light_redis: Light, light_rabbitmq: Light) -> None:
    """The relay's side: what it waits for comes never, and the next attempt has a connection that works."""

    def seconds_until_published(light: Light) -> float:
        with ExitStack() as stack:
            proxy, url = behind(stack, light)
            app = make_app(broker_url=url)
            announce(app, queue="nobody", job="j", epoch=1)
            proxy.half_open()
            proxy.heal()
            silent = time.monotonic()
            while True:
                try:
                    announce(app, queue="nobody", job="j", epoch=1)
                except (OperationalError, OSError):
                    assert time.monotonic() - silent < 4 * SILENCE_SECONDS
                    time.sleep(0.1)
                else:
                    return time.monotonic() - silent

    with ThreadPoolExecutor() as threads:
        took = [threads.submit(seconds_until_published, light) for light in (light_redis, light_rabbitmq)]
        for future in took:
            assert future.result(timeout=5 * SILENCE_SECONDS) < 4 * SILENCE_SECONDS


def test_a_stuck_worker_ends(light_redis: Light) -> None:
    worker = light_redis.start_worker(stuck_seconds=2)
    light_redis.finish(light_redis.submit(0), seconds=60)
    time.sleep(3)
    assert worker.alive, "a worker without work is not stuck"
    worker.server.send(signal.SIGUSR2)
    wait_until(lambda: not worker.alive, seconds=20, what="it ends")
    assert worker.server.end() == STUCK_EXIT_CODE
    assert "worker is stuck" in worker.log.read_text()


def test_a_worker_without_a_broker_is_not_stuck(light_redis: Light) -> None:
    """It waits for the broker, for as long as it takes."""
    with ExitStack() as stack:
        proxy, url = behind(stack, light_redis)
        worker = light_redis.start_worker(broker_url=url, stuck_seconds=2)
        light_redis.finish(light_redis.submit(0), seconds=60)
        proxy.refuse()
        time.sleep(5)
        assert worker.alive
        proxy.heal()
        light_redis.finish(light_redis.submit(0), seconds=60)
