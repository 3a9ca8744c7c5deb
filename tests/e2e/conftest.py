"""Whole systems: every service as a process of its own, on real servers, with the built-in tiny model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rookery import Client
from rookery.cli.quickstart import STUDENT, TEACHER
from rookery.local.cluster import Cluster
from rookery.local.logs import LogView
from rookery.local.ports import free_port
from tests.e2e.systems import System, register_tiny
from tests.servers.postgres import make_database

FAST = {
    # Leases of seconds, so that a test need not wait for the death of a worker to be noticed.
    "ROOKERY_LEASE_SECONDS": "6",
    "ROOKERY_FORGOTTEN_SECONDS": "8",
}


@contextmanager
def running_system(folder: Path, **settings: str) -> Iterator[System]:
    """A system with the tiny model as a teacher and as a student; `settings` are those of its services."""
    environment = {**FAST, **settings}
    address = f"127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ROOKERY_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        cluster = Cluster(folder, address=address, sink=LogView(folder / "logs", None), torch_threads=1)
        cluster.start()
    try:
        with Client(address) as client:
            register_tiny(client)
            yield System(cluster=cluster, client=client, address=address, teacher=TEACHER, student=STUDENT)
    finally:
        cluster.stop()


StartSystem = Callable[..., System]


@pytest.fixture
def system(shared_system: System) -> System:
    """One system for all tests that leave it as they found it: SQLite, local folder, Redis of its own.

    Its teacher is the base model: what runs of other tests have found better is not active.
    """
    return with_base_policy(shared_system)


@pytest.fixture
def postgres_system(shared_postgres_system: System) -> System:
    """The same on PostgreSQL."""
    return with_base_policy(shared_postgres_system)


def with_base_policy(system: System) -> System:
    system.client.set_active_policy(f"{system.teacher}/policies/0")
    return system


@pytest.fixture(scope="session")
def shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("system")) as started:
        yield started


@pytest.fixture(scope="session")
def shared_postgres_system(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[System]:
    settings = {"ROOKERY_DATABASE_URL": make_database(postgres_url)}
    with running_system(tmp_path_factory.mktemp("postgres-system"), **settings) as started:
        yield started
