"""Messages that announce no job are recorded and never executed, and the worker goes on to the next."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kombu.messaging import Producer

from rookery_shared.jobs.queues import DEAD, RABBITMQ_OPTIONS, REDIS_OPTIONS, TASK, is_rabbitmq, make_app
from tests.requirements.light import Light, Process
from tests.requirements.removal import Removal
from tests.servers.rabbitmq import connect, take, waiting
from tests.waiting import wait_until

CONSUMING = "shared/rookery_shared/jobs/consuming.py"
QUEUES = "shared/rookery_shared/jobs/queues.py"
REMOVALS = [
    Removal(
        what="messages are looked at before Celery has them",
        file=CONSUMING,
        old="            fault = fault_of(message)\n",
        new='            fault = ""\n',
        test="test_what_is_no_job_is_refused[rabbitmq]",
    ),
    Removal(
        what="what is refused becomes a dead letter",
        file=CONSUMING,
        old="        message.reject_log_error(get_logger(), self.connection_errors)\n",
        new="        message.ack_log_error(get_logger(), self.connection_errors)\n",
        test="test_what_is_no_job_is_refused[rabbitmq]",
    ),
    Removal(
        what="what is refused is counted",
        file=CONSUMING,
        old="        MESSAGES_REFUSED.inc()\n        get_logger().error(\n",
        new="        get_logger().error(\n",
        test="test_what_is_no_job_is_refused[redis]",
    ),
    Removal(
        what="an entry of Redis that is no message is refused",
        file=CONSUMING,
        old="        except (ValueError, KeyError, TypeError, AttributeError) as error:\n",
        new="        except ZeroDivisionError as error:\n",
        test="test_what_is_no_message_is_refused",
    ),
    Removal(
        what="JSON only",
        file=QUEUES,
        old='accept_content=["json"]',
        new='accept_content=["json", "pickle"]',
        test="test_a_pickle_is_not_opened[redis]",
    ),
    Removal(
        what="a message is dropped after some deliveries",
        file=QUEUES,
        old='        "x-delivery-limit": DELIVERY_LIMIT,\n',
        new="",
        test="test_a_message_that_nobody_survives_is_a_dead_letter",
    ),
]
ARGUMENTS = '[[], {"job": "j", "epoch": 1}, {}]'
JOB = {"task": TASK, "id": "1"}


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@contextmanager
def publisher(light: Light) -> Iterator[Any]:
    """A producer of kombu's, which has no types."""
    options = RABBITMQ_OPTIONS if is_rabbitmq(light.broker_url) else REDIS_OPTIONS
    app = make_app(broker_url=light.broker_url)
    with app.connection_for_write(transport_options=options) as connection:
        yield Producer(connection)  # type: ignore[no-untyped-call]


def publish(light: Light, body: bytes | str, content_type: str, headers: dict[str, Any]) -> None:
    encoding = "binary" if isinstance(body, bytes) else "utf-8"
    with publisher(light) as producer:
        producer.publish(
            body,
            routing_key="generate",
            exchange="",
            content_type=content_type,
            content_encoding=encoding,
            headers=headers,
        )


def start(light: Light) -> Process:
    """A worker that works, and no dead letters."""
    worker = light.start_worker()
    light.finish(light.submit(0), seconds=60)
    if is_rabbitmq(light.broker_url):
        take(light.broker_url, DEAD)
    return worker


def test_what_is_no_job_is_refused(light: Light) -> None:
    worker = start(light)
    strange: list[tuple[bytes | str, str, dict[str, Any]]] = [
        ("hello", "text/plain", {}),
        ("{not json", "application/json", JOB),
        (ARGUMENTS, "application/json", {"task": "os.system", "id": "2"}),
        (ARGUMENTS, "application/json", {"task": [], "id": "2"}),
        (ARGUMENTS, "application/json", {"task": TASK}),
        ("3", "application/json", JOB),
        ('[[], {"job": "j"}, {}]', "application/json", JOB),
        ('[["j", 1], {}, {}]', "application/json", JOB),
        (b"\xff\xfe\x00", "application/json", JOB),
    ]
    before = worker.counted("rookery_message_refused_total")
    for message in strange:
        publish(light, *message)
    jobs = light.submit(0)
    light.finish(jobs, seconds=60)
    assert worker.alive
    assert worker.counted("rookery_message_refused_total") - before == len(strange)
    assert worker.log.read_text().count("message refused") == len(strange)
    if is_rabbitmq(light.broker_url):
        wait_until(lambda: waiting(light.broker_url, DEAD) == len(strange), seconds=10, what="dead letters")
        bodies = {
            message.body if isinstance(message.body, bytes) else message.body.encode()
            for message in take(light.broker_url, DEAD)
        }
        assert bodies == {body.encode() if isinstance(body, str) else body for body, _, _ in strange}


def test_what_is_no_message_is_refused(light_redis: Light) -> None:
    """What somebody pushed on Redis's list by hand."""
    light, worker = light_redis, light_redis.start_worker()
    light.finish(light.submit(0), seconds=60)
    app = make_app(broker_url=light.broker_url)
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        for entry in ("hello", "3", "{}", '{"body": "", "properties": {}}'):
            client.lpush("generate", entry)
    light.finish(light.submit(0), seconds=60)
    assert worker.alive
    assert worker.counted("rookery_message_refused_total") == 4


def test_a_pickle_is_not_opened(light: Light, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("C_FORCE_ROOT", "1")  # or a worker that takes pickles would not even start as root
    worker = start(light)
    canary = tmp_path / "canary"
    body = pickle.dumps(([], {"job": Canary(canary), "epoch": 1}, {}))
    before = worker.counted("rookery_message_refused_total")
    publish(light, body, "application/x-python-serialize", JOB)
    publish(light, body, "application/x-python-serialize", {})
    light.finish(light.submit(0), seconds=60)
    assert not canary.exists()
    assert worker.counted("rookery_message_refused_total") - before == 2
    pickle.loads(body)
    assert canary.exists(), "it would have been seen"


def test_a_message_that_nobody_survives_is_a_dead_letter(light_rabbitmq: Light) -> None:
    """Deliveries that end with the connection, as those of a worker that dies with the message in its hands."""
    light = light_rabbitmq
    start(light)
    light.end_workers()
    publish(light, ARGUMENTS, "application/json", JOB)
    for _ in range(10):
        with connect(light.broker_url) as connection:
            wait_until(
                lambda: waiting(light.broker_url, "generate") or waiting(light.broker_url, DEAD), seconds=10, what="?"
            )
            if waiting(light.broker_url, DEAD):
                break
            assert connection.channel().basic_get("generate") is not None
    [dead] = take(light.broker_url, DEAD)
    assert dead.headers["x-first-death-reason"] == "delivery_limit"
    assert dead.body == ARGUMENTS


def test_apps_accept_json_only() -> None:
    for url in ("redis://localhost/0", "amqp://localhost//"):
        for queues in ((), ("generate",)):
            conf = make_app(broker_url=url, queues=queues).conf
            assert conf.accept_content == ["json"]
            assert (conf.task_serializer, conf.result_serializer) == ("json", "json")
