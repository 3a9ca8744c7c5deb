"""All services on this machine: which processes there are, and what they are told.

The coordinator and its worker always run, and a broker unless another is named; a teacher and, where it can be trained,
its trainer for each teacher profile, a student and its evaluator for each student profile, as the profiles are
registered.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rookery.client import Client
from rookery.errors import CallFailed, RookeryError
from rookery.local.broker import redis_command
from rookery.local.ports import free_port
from rookery.local.processes import Command, LineSink, Supervised
from rookery.transport import open_channel
from rookery.v1 import model_service_pb2

READY_SECONDS = 60.0


class AlreadyUp(RookeryError):
    """Another `rookery up` uses the same folder."""

    reason = "ALREADY_UP"


class DoesNotStart(RookeryError):
    """A service did not get ready; its log says why."""

    reason = "DOES_NOT_START"


class Cluster:
    """Processes and the folder that holds all of their state."""

    def __init__(self, folder: Path, *, address: str, sink: LineSink, torch_threads: int = 0) -> None:
        self.folder = folder.resolve()
        self.address = address
        self._sink = sink
        self._torch_threads = torch_threads
        self._lock_file: IO[str] | None = None
        self._sockets = Path()
        self._running: dict[str, Supervised] = {}
        self._stopping = threading.Event()
        self._reconciler: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait for the coordinator. Raises AlreadyUp, NoBroker or DoesNotStart."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        self._sockets = Path(tempfile.mkdtemp(prefix="rookery-"))  # a socket's path must be short
        self._environment = self._make_environment()
        self._migrate()
        self._run("coordinator", "rookery_coordinator", "serve", ROOKERY_ADDRESS=self.address)
        self._run("worker", "rookery_coordinator", "worker")
        try:
            wait_until_serving(self.address)
        except DoesNotStart:
            self.stop()
            raise
        self._reconciler = threading.Thread(target=self._reconcile_forever, name="reconciler", daemon=True)
        self._reconciler.start()

    def stop(self) -> None:
        """Stop everything: those who work first, those whom they need last."""
        self._stopping.set()
        if self._reconciler is not None:
            self._reconciler.join()
        first = [p for name, p in self._running.items() if name not in ("coordinator", "redis")]
        last = [self._running[name] for name in ("coordinator", "redis") if name in self._running]
        stoppers = [threading.Thread(target=process.stop) for process in first]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        for process in last:
            process.stop()
        self._running.clear()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._lock_file is not None:
            self._lock_file.close()

    def process(self, name: str) -> Supervised:
        """A running process, such as "coordinator" or "student-tiny-student"."""
        return self._running[name]

    @property
    def names(self) -> list[str]:
        return list(self._running)

    # --- what they are told ---------------------------------------------------------------------------------------

    def _make_environment(self) -> dict[str, str]:
        """The settings of all services, for as long as the cluster runs. What the user has set wins."""
        told = {
            "ROOKERY_LOG_FORMAT": "text",
            "ROOKERY_DATABASE_URL": f"sqlite:///{self.folder}/rookery.db",
            "ROOKERY_STORE_URL": f"file://{self.folder}/objects",
            "ROOKERY_CACHE_FOLDER": f"{self.folder}/cache",
            "ROOKERY_COORDINATOR_TARGET": self.address,
            "ROOKERY_JOB_ADDRESS": f"unix:{self._sockets}/jobs.sock",
            "ROOKERY_JOB_SERVICE_TARGET": f"unix:{self._sockets}/jobs.sock",
            "ROOKERY_TEACHER_TARGET": f"unix:{self._sockets}/teacher-{{profile}}.sock",
            "ROOKERY_EVALUATOR_TARGET": f"unix:{self._sockets}/evaluator-{{profile}}.sock",
            "ROOKERY_LEASE_SECONDS": "15",
            "ROOKERY_FORGOTTEN_SECONDS": "10",
            "ROOKERY_TORCH_THREADS": str(self._torch_threads),
            # Threads of one service that wait for each other must not keep the cores from another's: where they spin,
            # training beside a busy teacher takes several times as long.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        if "ROOKERY_BROKER_URL" not in os.environ:
            port = free_port()
            self._running["redis"] = Supervised(redis_command(self.folder / "redis", port), self._sink)
            told["ROOKERY_BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
        return told | {name: value for name, value in os.environ.items() if name.startswith("ROOKERY_")}

    def _run(self, name: str, module: str, *arguments: str, **settings: str) -> None:
        command = Command(
            name=name,
            argv=[sys.executable, "-m", module, *arguments],
            env={**self._environment, **settings},
        )
        self._running[name] = Supervised(command, self._sink)

    def _migrate(self) -> None:
        argv = [sys.executable, "-m", "rookery_coordinator", "migrate"]
        done = subprocess.run(
            argv, env={**os.environ, **self._environment}, capture_output=True, text=True, check=False
        )
        for line in done.stderr.splitlines():
            self._sink("migrate", line)
        if done.returncode:
            raise DoesNotStart(f"the database cannot be brought up to date:\n{done.stderr}")

    # --- profiles -------------------------------------------------------------------------------------------------

    def _reconcile_forever(self) -> None:
        """Start the processes of each profile soon after it is registered."""
        with Client(self.address) as client:
            while not self._stopping.wait(0.5):
                try:
                    profiles = list(client.list_profiles())
                except CallFailed:
                    continue  # the coordinator is being started again
                for profile in profiles:
                    self._run_profile(profile)

    def _run_profile(self, profile: model_service_pb2.Profile) -> None:
        id_ = profile.name.removeprefix("profiles/")
        if profile.role == model_service_pb2.ROLE_TEACHER:
            address = f"unix:{self._sockets}/teacher-{id_}.sock"
            self._run_once(f"teacher-{id_}", "rookery_teacher", "serve", profile.name, address)
            if profile.engine != "openai":  # nothing at an endpoint can be trained
                self._run_once(f"trainer-{id_}", "rookery_teacher", "trainer", profile.name, "")
        else:
            address = f"unix:{self._sockets}/evaluator-{id_}.sock"
            self._run_once(f"evaluator-{id_}", "rookery_evaluator", "", profile.name, address)
            self._run_once(f"student-{id_}", "rookery_student", "", profile.name, "")

    def _run_once(self, name: str, module: str, command: str, profile: str, address: str) -> None:
        if name not in self._running:
            settings = {"ROOKERY_PROFILE": profile, **({"ROOKERY_ADDRESS": address} if address else {})}
            self._run(name, module, *([command] if command else []), **settings)

    # --- starting up ----------------------------------------------------------------------------------------------

    def _take_folder(self) -> None:
        self._lock_file = (self.folder / "up.lock").open("a+")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyUp(f"another `rookery up` runs in {self.folder}", folder=str(self.folder)) from None


def wait_until_serving(target: str, *, seconds: float = READY_SECONDS) -> None:
    """Until a server's health says so. Raises DoesNotStart."""
    deadline = time.monotonic() + seconds
    with open_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline:
            try:
                response = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                time.sleep(0.1)
            else:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    return
    raise DoesNotStart(f"nothing answers at {target}; is the port taken?", target=target)
