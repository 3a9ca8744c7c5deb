"""The coordinator's server process: two APIs, the relay and the reaper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rookery.errors import RookeryError
from rookery.internal.v1 import job_service_pb2, job_service_pb2_grpc
from rookery.v1 import (
    adaptation_service_pb2,
    adaptation_service_pb2_grpc,
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
)
from rookery_coordinator.api.adaptations import AdaptationApi
from rookery_coordinator.api.adapters import AdapterApi
from rookery_coordinator.api.base import Units
from rookery_coordinator.api.jobs import JobApi
from rookery_coordinator.api.models import ModelApi
from rookery_coordinator.api.runs import RunApi
from rookery_coordinator.api.watching import Feed
from rookery_coordinator.database import Database
from rookery_coordinator.inventory import Inventory
from rookery_coordinator.leftovers import Leftovers
from rookery_coordinator.measuring import Measuring
from rookery_coordinator.reaper import Reaper
from rookery_coordinator.references import Expiry
from rookery_coordinator.relay import BATCH, Relay
from rookery_coordinator.settings import CoordinatorSettings
from rookery_shared.jobs.queues import make_app
from rookery_shared.log import get_logger
from rookery_shared.rpc.server import RpcServer, Secure, Servicer, run_until_signalled
from rookery_shared.rpc.tls import Certificate
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import open_cache
from rookery_shared.store.probing import open_store

T = TypeVar("T")

VERIFY_SECONDS = 86_400.0
"""Every adapter's every byte is read."""
MEASURE_SECONDS = 5.0


async def serve(settings: CoordinatorSettings) -> None:
    """Until a signal. Any number of such processes may share a database. Raises SystemExit if the store is no good."""
    store = open_store(settings, writes=True)
    database = Database(settings.database_url, seconds=settings.sql_seconds)
    units, inventory = Units(database), Inventory(database, store)
    public = RpcServer(
        _public(units, store, inventory, settings),
        address=settings.address,
        settings=settings,
        secure=_secure(settings),
    )
    internal = RpcServer(_internal(units, settings), address=settings.job_address, settings=settings)
    reaper = Reaper(database, forgotten_seconds=settings.forgotten_seconds)
    measuring, leftovers = Measuring(database), Leftovers(database, store)
    expiry = Expiry(database, days=settings.keep_days)

    def collect() -> None:
        expiry.sweep()
        inventory.collect()

    try:
        await run_until_signalled(
            [internal, public],
            background=[
                *(_relaying(database, settings) if settings.relays else []),
                _forever(measuring.measure, pause=lambda _: MEASURE_SECONDS),
                _forever(reaper.sweep, pause=lambda _: settings.lease_seconds / 6),
                _forever(leftovers.sweep, pause=lambda _: settings.leftovers_seconds),
                _forever(collect, pause=lambda _: settings.collect_seconds),
            ],
        )
    finally:
        database.close()


async def relay(settings: CoordinatorSettings) -> None:
    """Send messages, and nothing else, until a signal."""
    database = Database(settings.database_url, seconds=settings.sql_seconds)
    try:
        await run_until_signalled([], background=_relaying(database, settings))
    finally:
        database.close()


def _relaying(database: Database, settings: CoordinatorSettings) -> list[Callable[[], Awaitable[None]]]:
    sender = Relay(database, make_app(broker_url=settings.broker_url))
    return [
        _forever(sender.send_due, pause=lambda sent: 0.0 if sent == BATCH else settings.relay_seconds),
    ]


def _public(units: Units, store: ObjectStore, inventory: Inventory, settings: CoordinatorSettings) -> list[Servicer]:
    cache = open_cache(store, settings)
    feed = Feed(units, seconds=settings.watch_seconds)
    runs, adaptations = RunApi(units, feed), AdaptationApi(units, feed)
    models, adapters = ModelApi(units), AdapterApi(units, store, cache, inventory)
    return [
        Servicer(
            add=lambda server: run_service_pb2_grpc.add_RunServiceServicer_to_server(runs, server),
            descriptor=run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
            watches=frozenset({"WatchRun"}),
        ),
        Servicer(
            add=lambda server: adaptation_service_pb2_grpc.add_AdaptationServiceServicer_to_server(adaptations, server),
            descriptor=adaptation_service_pb2.DESCRIPTOR.services_by_name["AdaptationService"],
            watches=frozenset({"WatchAdaptation"}),
        ),
        Servicer(
            add=lambda server: model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, server),
            descriptor=model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
        ),
        Servicer(
            add=lambda server: adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(adapters, server),
            descriptor=adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"],
            seconds={"VerifyStore": VERIFY_SECONDS},
        ),
    ]


def _secure(settings: CoordinatorSettings) -> Secure | None:
    if not settings.tls_address:
        return None
    return Secure(address=settings.tls_address, certificate=Certificate(settings.tls_certificate, settings.tls_key))


def _internal(units: Units, settings: CoordinatorSettings) -> list[Servicer]:
    jobs = JobApi(units, lease_seconds=settings.lease_seconds)
    return [
        Servicer(
            add=lambda server: job_service_pb2_grpc.add_JobServiceServicer_to_server(jobs, server),
            descriptor=job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
        )
    ]


def _forever(step: Callable[[], T], *, pause: Callable[[T], float]) -> Callable[[], Awaitable[None]]:
    """A background task that takes one step after the other on a thread. A step that fails is tried again."""

    async def loop() -> None:
        while True:
            try:
                seconds = pause(await asyncio.to_thread(step))
            except RookeryError as error:
                get_logger().warning("background step failed", reason=error.reason, message=error.message)
                seconds = 1.0
            except Exception:
                get_logger().exception("background step failed")
                seconds = 1.0
            await asyncio.sleep(seconds)

    return loop
