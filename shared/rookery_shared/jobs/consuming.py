"""How a worker takes messages: no more than it has slots for, nothing that is no job, and never deaf for long.

On RabbitMQ a message that stays unacknowledged for the broker's consumer_timeout ends the whole worker, whether its job
runs or it only waits behind one. So each queue delivers one message at a time, which is acknowledged when its job's
thread has it; and with the last slot taken the worker consumes no more, so that the next message goes to another. On
Redis, `worker_disable_prefetch` does the same.

Celery's event loop owns the connection. What another thread has to say is handed over with `hub.call_soon`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from celery import bootsteps
from celery.app.amqp import AMQP
from celery.concurrency.thread import TaskPool
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.consumer import Consumer
from celery.worker.consumer.tasks import Tasks
from celery.worker.state import reserved_requests
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.messaging import Consumer as Subscription

from rookery_shared.jobs.queues import TASK, dead_letters, is_rabbitmq
from rookery_shared.log import get_logger
from rookery_shared.metrics import MESSAGES_REFUSED

BEAT_SECONDS = 5.0
STUCK_SECONDS = 120.0
"""An event loop that has not run for this long will not run again. The longest that it may wait for a broker that is
connected is the read timeout, a few times in a row.
"""
STUCK_EXIT_CODE = 70


class JobPool(TaskPool):  # type: ignore[misc]  # Celery has no types
    """Threads that say when one of them is free again."""

    freed: Callable[[], object] | None = None
    """Called in the thread."""

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super().on_apply(*args, **kwargs)
        result.f.add_done_callback(self._after)
        return result

    def _after(self, _: Future[Any]) -> None:
        if self.freed is not None:
            self.freed()


class SlotSubscription(Subscription):
    """Consumes from all queues or from none."""

    has_free_slot: Callable[[], bool] = staticmethod(lambda: True)

    def consume(self, no_ack: bool | None = None) -> None:
        """Waits for no answer: what another queue delivers meanwhile would find nobody, and be put back."""
        if self.has_free_slot():
            for queue in self.queues or ():
                self._basic_consume(queue, no_ack=no_ack, nowait=True)  # type: ignore[no-untyped-call]  # kombu

    @property
    def consuming(self) -> bool:
        return bool(self._active_tags)


class JobAMQP(AMQP):  # type: ignore[misc]  # Celery has no types
    Consumer = SlotSubscription


class JobTasks(Tasks):  # type: ignore[misc]  # Celery has no types
    """Subscribes to the queues of jobs."""

    def start(self, c: Any) -> None:
        if is_rabbitmq(c.app.conf.broker_url):
            dead: Any = dead_letters()
            dead(c.connection.default_channel).declare()
        super().start(c)
        c.task_consumer.has_free_slot = c.has_free_slot
        if not is_rabbitmq(c.app.conf.broker_url):
            handlers = c.task_consumer.channel.handlers
            handlers["BRPOP"] = c.guard(handlers["BRPOP"])


class Watchdog(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Ends a process whose event loop is stuck, so that its supervisor starts another.

    A connection that has gone silent is noticed by the event loop itself: by AMQP's heartbeats, and by kombu's checks
    of Redis's answers. This is for a loop that has stopped looking. It does not watch while the worker connects, which
    may take as long as the broker is down.
    """

    requires = (Connection,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._beat = time.monotonic()
        self._stopped = threading.Event()

    def start(self, c: Any) -> None:
        self._touch()
        c.timer.call_repeatedly(BEAT_SECONDS, self._touch)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, args=(self._stopped,), name="watchdog", daemon=True).start()

    def stop(self, c: Any) -> None:
        self._stopped.set()

    def _touch(self) -> None:
        self._beat = time.monotonic()

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(STUCK_SECONDS / 10):
            if time.monotonic() - self._beat > STUCK_SECONDS:
                get_logger().error("worker is stuck; ending it", seconds=STUCK_SECONDS)
                os._exit(STUCK_EXIT_CODE)


class JobConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer with our limits. It needs no events, no gossip, no remote control and no delayed delivery."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]  # Celery has no types
        default_steps = (Connection, Watchdog, JobTasks, "celery.worker.consumer.consumer:Evloop")

    def __init__(self, on_task_request: Callable[[Any], None], **kwargs: Any) -> None:
        super().__init__(on_task_request, **kwargs)
        self._slots: int = self.app.conf["rookery_slots"]
        self._pauses = is_rabbitmq(self.app.conf.broker_url)
        self._pausing = False
        """The broker is being told; meanwhile it may deliver more."""
        if self._pauses:
            self.initial_prefetch_count = 1
        self._start_job = on_task_request
        self.on_task_request = self._take
        self.pool.freed = lambda: self.hub.call_soon(self._resume)

    def wait_until_over(self, seconds: float) -> None:
        """For another thread: wait until a worker that is told to end takes no more messages, but not for longer."""
        self.hub.call_soon(lambda: None)  # the event loop looks whether it is to end when it has something to do
        self.blueprint.join(seconds)

    # --- slots ----------------------------------------------------------------------------------------------------

    def has_free_slot(self) -> bool:
        return not self._pauses or len(reserved_requests) < self._slots

    def _take(self, request: Any) -> None:
        """Hand a job to the pool. Its message is acknowledged by the event loop, and so after this.

        What another queue delivers while the broker is told to stop is taken as well: the pool has a thread to spare
        for each. To put it back would count as a failed delivery.
        """
        self._start_job(request)
        if not self.has_free_slot() and self.task_consumer.consuming and not self._pausing:
            self._pausing = True
            try:
                self.task_consumer.cancel()
            except TimeoutError as silent:  # the reader of kombu takes a bare one for the end of what there is to read
                raise ConnectionError("the broker does not answer") from silent
            finally:
                self._pausing = False

    def _resume(self) -> None:
        """A thread is free."""
        if self.connection and self.task_consumer and not self.task_consumer.consuming:
            self.task_consumer.consume()

    # --- messages that are no jobs --------------------------------------------------------------------------------

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def handle_message(message: Any) -> None:
            fault = fault_of(message)
            if fault:
                self._refuse(message, fault)
            else:
                handle(message)

        return handle_message

    def guard(self, read: Callable[[], Any]) -> Callable[[], Any]:
        """An entry of Redis's list that is no message at all does not end the worker."""

        def guarded() -> Any:
            try:
                return read()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                MESSAGES_REFUSED.inc()
                get_logger().error("message refused", why="no message", error=f"{type(error).__name__}: {error}")

        return guarded

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._refuse(message, "unknown form")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, "unknown task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, "invalid task")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._refuse(message, "cannot be decoded")

    def _refuse(self, message: Any, why: str) -> None:
        """On RabbitMQ a rejected message becomes a dead letter. Of its content only the size is logged."""
        MESSAGES_REFUSED.inc()
        get_logger().error(
            "message refused",
            why=why,
            queue=(message.delivery_info or {}).get("routing_key"),
            content_type=message.content_type,
            size=len(message.body or b""),
        )
        message.reject_log_error(get_logger(), self.connection_errors)


def fault_of(message: Any) -> str:
    """Why a message announces no job; empty if it does."""
    headers = message.headers
    if not isinstance(headers, dict) or headers.get("task") != TASK or not isinstance(headers.get("id"), str):
        return "not a job's task"
    try:
        payload = message.payload
    except (ContentDisallowed, DecodeError):
        return "not JSON"
    match payload:
        case [[], {"job": str(), "epoch": int()} as arguments, dict()] if len(arguments) == 2:
            return ""
        case _:
            return "not a job's arguments"
