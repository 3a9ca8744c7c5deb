"""Celery as this system uses it: JSON messages of a job id and an epoch, acknowledged early, no results kept.

Why each setting is what it is, for Redis: with an early acknowledgement nothing is unacknowledged while a job runs, so
the broker's visibility timeout cannot start it twice; a worker that dies is found by its lease. Prefetch is off, so a
job waits in the queue and not behind another in a busy worker.
"""

from __future__ import annotations

from celery import Celery
from kombu.entity import Exchange, Queue

TASK = "rookery.job"


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


def make_app(*, broker_url: str, queues: tuple[str, ...] = (), runner: str = "") -> Celery:
    """An app that publishes jobs, and consumes them from `queues` if given.

    `runner` is "module:function", called once in the worker process to build the JobRunner that does the jobs.
    """
    app = Celery("rookery", broker=broker_url, set_as_current=bool(queues))
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
        task_queues=[_queue(name) for name in queues] or None,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": 600, "global_keyprefix": "rookery:", "socket_keepalive": True},
        imports=("rookery_shared.jobs.tasks",) if queues else (),
        rookery_runner=runner,
    )
    return app


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name), routing_key=name, durable=True)  # type: ignore[no-untyped-call]  # kombu


def announce(app: Celery, *, queue: str, job: str, epoch: int) -> None:
    """Say that a job is ready, and wait until the broker has the message.

    Raises kombu's OperationalError if it is down.
    """
    app.send_task(TASK, kwargs={"job": job, "epoch": epoch}, queue=queue, retry=False, ignore_result=True)
