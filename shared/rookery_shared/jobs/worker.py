"""Starts a Celery worker, and builds the runner that its processes use."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Mapping

from celery import signals

from rookery.internal.v1.job_service_pb2_grpc import JobServiceStub
from rookery.transport import open_channel
from rookery_shared import log
from rookery_shared.jobs.consuming import JobConsumer
from rookery_shared.jobs.queues import make_app
from rookery_shared.jobs.runner import JobRunner, WorkerHandler
from rookery_shared.jobs.tasks import process_runner
from rookery_shared.log import get_logger
from rookery_shared.metrics import serve_metrics
from rookery_shared.settings import ServiceSettings

SHUTDOWN_SECONDS = 25.0
"""How long a worker may take to end: a machine that is taken away gives half a minute."""
CLOSE_SECONDS = 2.0
"""How much of that it waits for a broker that does not let it go."""


def connect_runner(settings: ServiceSettings, handlers: Mapping[str, WorkerHandler]) -> JobRunner:
    """A runner that claims from the coordinator in the settings. Each has a name of its own, for its claims."""
    jobs = JobServiceStub(open_channel(settings.job_service_target))
    worker = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    return JobRunner(jobs, worker=worker, handlers=handlers)


def run_worker(
    settings: ServiceSettings,
    *,
    service: str,
    queues: tuple[str, ...],
    runner: str,
    concurrency: int,
) -> None:
    """Consume until a signal; then give back the jobs that run. `runner` is the "module:function" that builds it.

    Jobs run in threads: they wait for remote answers, or for the process that owns the device.
    """

    def configure_log(**_: object) -> None:
        """Also in place of what Celery would do, which is not asked."""
        log.configure(service=service, level=settings.log_level, style=settings.log_format)

    configure_log()
    serve_metrics(settings.metrics_port, host=settings.metrics_host)
    signals.setup_logging.connect(configure_log)
    app = make_app(broker_url=settings.broker_url, queues=queues, runner=runner, slots=concurrency)
    _give_back_at_shutdown()
    app.worker_main(
        [
            "worker",
            f"--hostname={service}-{uuid.uuid4().hex[:8]}@%h",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
        ]
    )


def _give_back_at_shutdown() -> None:
    """The signal's handler may interrupt anything, so it only wakes a thread. Celery then waits for the jobs to end.

    What is given back is announced again at once, and must find this worker's ears closed.
    """
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    consumers: list[JobConsumer] = []

    def wait() -> None:
        told.get()
        for consumer in consumers:
            consumer.wait_until_over(CLOSE_SECONDS)
        process_runner().stop()
        time.sleep(SHUTDOWN_SECONDS - CLOSE_SECONDS)
        get_logger().warning("jobs do not end; their leases will run out")
        os._exit(1)

    threading.Thread(target=wait, name="shutdown", daemon=True).start()
    signals.worker_ready.connect(lambda sender, **_: consumers.append(sender), weak=False)
    signals.worker_shutting_down.connect(lambda **_: told.put(None), weak=False)
