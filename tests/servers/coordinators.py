"""Coordinators without workers: processes on one database, and nobody at the broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rookery import Client
from rookery.local.cluster import wait_until_serving
from rookery.local.ports import free_port
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER, ModelSource, Profile

TEACHER, STUDENT = "profiles/teacher", "profiles/student"
STOP_SECONDS = 60.0


@dataclass
class CoordinatorProcess:
    """One of them. It can be started again where it was."""

    environment: Mapping[str, str]
    target: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    jobs: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")

    def begin(self) -> None:
        addresses = {"ROOKERY_ADDRESS": self.target, "ROOKERY_JOB_ADDRESS": self.jobs}
        argv = [sys.executable, "-m", "rookery_coordinator", "serve"]
        self.process = subprocess.Popen(argv, env={**self.environment, **addresses})

    def start(self) -> None:
        self.begin()
        wait_until_serving(self.target)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """The exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def settings_of_coordinators(folder: Path, database_url: str, **settings: str) -> dict[str, str]:
    """The environment of coordinators that share all that is in a folder."""
    return {
        **os.environ,
        "ROOKERY_DATABASE_URL": database_url,
        "ROOKERY_STORE_URL": f"file://{folder}/objects",
        "ROOKERY_CACHE_FOLDER": str(folder / "cache"),
        "ROOKERY_LOG_FORMAT": "text",
        "ROOKERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",
        "ROOKERY_LOG_LEVEL": "ERROR",
        **settings,
    }


@contextmanager
def start_coordinators(
    count: int, folder: Path, *, database_url: str = "", **settings: str
) -> Iterator[list[CoordinatorProcess]]:
    """On a new database, in SQLite if no other is named, with a teacher's and a student's profile."""
    environment = settings_of_coordinators(folder, database_url or f"sqlite:///{folder}/rookery.db", **settings)
    subprocess.run([sys.executable, "-m", "rookery_coordinator", "migrate"], env=environment, check=True)
    running = [CoordinatorProcess(environment) for _ in range(count)]
    for each in running:
        each.begin()
    try:
        for each in running:
            wait_until_serving(each.target)
        with Client(running[0].target) as client:
            for name, role in ((TEACHER, ROLE_TEACHER), (STUDENT, ROLE_STUDENT)):
                client.create_profile(Profile(name=name, role=role, model=ModelSource(source="m")))
        yield running
    finally:
        for each in running:
            with suppress(ProcessLookupError):
                each.kill()


def target_of_all(coordinators: list[CoordinatorProcess]) -> str:
    """A gRPC target with all of them behind it."""
    return "ipv4:" + ",".join(each.target for each in coordinators)
