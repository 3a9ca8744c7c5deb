"""Celery as this system uses it: JSON messages of a job id and an epoch, acknowledged early, no results kept. The span
that has made the job is in their headers.

A message is acknowledged when a worker starts on its job, so no broker's timeout can end or repeat a job that takes
hours. A message that is lost with its worker is no loss: the coordinator's row is the authority, and announces the job
again. A job waits in the queue and not behind another in a busy worker (see `consuming`).

Redis: nothing is unacknowledged while a job runs, so the visibility timeout cannot start it twice.

RabbitMQ: quorum queues, published with confirms. A message that was delivered too often, or that is no job, goes to the
queue `rookery.dead`. Every program declares a queue with the same arguments, as the broker demands.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu.entity import Exchange, Queue
from opentelemetry.trace import SpanKind

from rookery.tracing import TRACEPARENT, current_trace, step

TASK = "rookery.job"
DEAD = "rookery.dead"

DELIVERY_LIMIT = 5
"""Deliveries of one message that a worker did not live to acknowledge."""
SILENCE_SECONDS = 20.0
"""A broker that has not answered for this long is gone: the connection is closed and another one opened."""
HEARTBEAT_SECONDS = SILENCE_SECONDS / 2
"""AMQP's: two that are missed end the connection."""

REDIS_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 600,
    "global_keyprefix": "rookery:",
    "socket_keepalive": True,
    "socket_connect_timeout": 10.0,
    # Two connections in a row may have to be given up: the one that asks for messages, and the one that keeps them.
    "socket_timeout": SILENCE_SECONDS / 2,
    "retry_on_timeout": True,
    "health_check_interval": 10,
}
RABBITMQ_OPTIONS: dict[str, Any] = {
    "confirm_publish": True,
    "read_timeout": SILENCE_SECONDS,
    "write_timeout": SILENCE_SECONDS,
}


def generate_queue() -> str:
    return "generate"


def evaluate_queue() -> str:
    return "evaluate"


def train_queue(student: str) -> str:
    """The queue of one student profile, by its name `profiles/{profile}`."""
    return f"train.{student.removeprefix('profiles/')}"


def improve_queue(teacher: str) -> str:
    """The queue of one teacher profile's trainer."""
    return f"improve.{teacher.removeprefix('profiles/')}"


def is_rabbitmq(broker_url: str) -> bool:
    return urlsplit(broker_url).scheme in ("amqp", "amqps", "pyamqp")


def make_app(*, broker_url: str, queues: tuple[str, ...] = (), runner: str = "", slots: int = 1) -> Celery:
    """An app that publishes jobs, and consumes them from `queues` if given, as many at once as it has slots.

    `runner` is "module:function", called once in the worker process to build the JobRunner that does the jobs.
    """
    rabbitmq = is_rabbitmq(broker_url)
    app = Celery(
        "rookery", broker=broker_url, set_as_current=bool(queues), amqp="rookery_shared.jobs.consuming:JobAMQP"
    )
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_queues=[_queue(name, rabbitmq=rabbitmq) for name in queues] or None,
        worker_consumer="rookery_shared.jobs.consuming:JobConsumer",
        worker_pool="rookery_shared.jobs.consuming:JobPool",
        # A thread to spare for each further queue: see `consuming`.
        worker_concurrency=slots + (len(queues) - 1 if rabbitmq and queues else 0),
        rookery_slots=slots,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=not rabbitmq,
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=10.0,
        broker_heartbeat=HEARTBEAT_SECONDS,
        broker_transport_options=RABBITMQ_OPTIONS if rabbitmq else REDIS_OPTIONS,
        imports=("rookery_shared.jobs.tasks",) if queues else (),
        rookery_runner=runner,
    )
    return app


def _queue(name: str, *, rabbitmq: bool) -> Queue:
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": DEAD,
    }
    return Queue(  # type: ignore[no-untyped-call]  # kombu
        name, _exchange(name), routing_key=name, durable=True, queue_arguments=arguments if rabbitmq else None
    )


def _exchange(name: str, **options: Any) -> Exchange:
    return Exchange(name, **options)  # type: ignore[no-untyped-call]  # kombu


def dead_letters() -> Queue:
    """Where RabbitMQ puts messages that no worker takes, whichever queue they were in."""
    return Queue(  # type: ignore[no-untyped-call]  # kombu
        DEAD, _exchange(DEAD, type="fanout"), durable=True, queue_arguments={"x-queue-type": "quorum"}
    )


def announce(app: Celery, *, queue: str, job: str, epoch: int, trace: str = "") -> None:
    """Say that a job is ready, and wait until the broker has the message. `trace` is the span that has made the job.

    Raises kombu's OperationalError if it is down.
    """
    rabbitmq = is_rabbitmq(app.conf.broker_url)
    target = _queue(queue, rabbitmq=rabbitmq)
    with step(f"send {queue}", after=trace, kind=SpanKind.PRODUCER, attributes={"rookery.job": job}):
        app.send_task(
            TASK,
            kwargs={"job": job, "epoch": epoch},
            headers={TRACEPARENT: current_trace()},
            queue=target,
            declare=[target, dead_letters()] if rabbitmq else [target],
            retry=True,  # once, on a new connection: the old one may be one that only this end believes in
            retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
            ignore_result=True,
        )
