"""`rookery-coordinator serve | relay | worker | migrate`."""

from __future__ import annotations

import argparse
import gc

from rookery.errors import RookeryError
from rookery_coordinator.settings import CoordinatorSettings, WorkerSettings
from rookery_shared import telemetry
from rookery_shared.log import get_logger
from rookery_shared.metrics import serve_metrics
from rookery_shared.rpc.server import run_service


def main() -> None:
    parser = argparse.ArgumentParser(prog="rookery-coordinator", description="Owns the state of a Rookery.")
    parser.add_argument(
        "command",
        nargs="?",
        default="serve",
        choices=("serve", "relay", "worker", "migrate"),
        help="serve the APIs and, unless ROOKERY_RELAYS is false, relay messages (default); relay messages and nothing "
        "else; work off jobs that call other services; or bring the database up to date",
    )
    match parser.parse_args().command:
        case "serve":
            _serve()
        case "relay":
            _relay()
        case "worker":
            _work()
        case "migrate":
            _migrate()


def _serve() -> None:
    from rookery_coordinator.server import serve

    settings = CoordinatorSettings()
    telemetry.configure(settings, service="coordinator")
    serve_metrics(settings.metrics_port, host=settings.metrics_host)
    _collect_seldom()
    run_service(serve(settings))


def _collect_seldom() -> None:
    """Leave what was imported to itself, and look for cycles once in many objects.

    A call makes thousands that die by their counts alone. In turns of `tests.bench.control` this accepted 358 and 319
    adaptations a second for 294 and 253. A look into 50,000 objects held every call up for 30 ms, one into 10,000
    takes 8.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _relay() -> None:
    from rookery_coordinator.server import relay

    settings = CoordinatorSettings()
    telemetry.configure(settings, service="coordinator-relay")
    serve_metrics(settings.metrics_port, host=settings.metrics_host)
    run_service(relay(settings))


def _work() -> None:
    from rookery_shared.jobs.queues import evaluate_queue, generate_queue
    from rookery_shared.jobs.worker import run_worker

    settings = WorkerSettings()
    telemetry.configure(settings, service="coordinator-worker")
    run_worker(
        settings,
        service="coordinator-worker",
        queues=(generate_queue(), evaluate_queue()),
        runner="rookery_coordinator.worker:build_runner",
        concurrency=settings.worker_concurrency,
    )


def _migrate() -> None:
    from rookery_coordinator.database import Database
    from rookery_coordinator.schema import migrate

    settings = CoordinatorSettings()
    telemetry.configure(settings, service="coordinator")
    database = Database(settings.database_url)
    try:
        migrate(database)
    except RookeryError as error:
        get_logger().error("cannot migrate", reason=error.reason, message=error.message)
        raise SystemExit(1) from None
    finally:
        database.close()


if __name__ == "__main__":
    main()
