"""Runs a rendering's pods as local processes: their commands, environment, ports, probes and ends, as a cluster would.

A pod has an address of its own on the loopback, so that all listen at the ports that the chart gives them. Its root is
read-only but for its volumes, where this machine lets us put it into a mount namespace. What a cluster's DNS would
answer is put in place of each name: all addresses that a Deployment's pods may have, those of a rolling update among
them; who calls leaves out those where nobody listens.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import urllib3

from rookery.local.cluster import DoesNotStart, wait_until_serving
from tests.deploy.charts import PAIR, Manifest, Rendering, render
from tests.servers.processes import ServerProcess
from tests.servers.redis import start_redis
from tests.servers.s3 import start_moto

SURGE = 1
"""Pods of a Deployment beyond its replicas, while it rolls."""
LOOK_SECONDS = 0.1
_NAME = re.compile(r"dns:///([a-z0-9-]+):(\d+)")

READ_ONLY_ROOT = """\
set -e
while [ "$1" != -- ]; do mount --bind "$1" "$1"; shift; done
shift
mount -o remount,bind,ro /
exec "$@"
"""
"""A shell's script for folders, "--" and a command: that may write to the folders, but not to the root they lie in."""

Secrets = Mapping[str, Mapping[str, str]]


def on_read_only_root(command: Sequence[str], writable: Sequence[str] = ()) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", READ_ONLY_ROOT, "sh", *writable, "--", *command]


@cache
def may_mount() -> bool:
    """Whether we may have a mount namespace: as root, and in a container only with CAP_SYS_ADMIN."""
    return subprocess.run(on_read_only_root(["true"]), capture_output=True, check=False).returncode == 0


@dataclass(kw_only=True)
class Pod:
    name: str
    address: str
    template: Manifest
    folder: Path
    environment: dict[str, str]
    command: list[str]
    process: ServerProcess
    restarts: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def container(self) -> Manifest:
        containers: list[Manifest] = self.template["spec"]["containers"]
        assert len(containers) == 1
        return containers[0]

    def start(self) -> None:
        self.process = ServerProcess(self.command, log=self.log, env=self.environment)

    def answers(self, probe: Manifest) -> bool:
        seconds = probe["timeoutSeconds"]
        if "grpc" in probe:
            return self._serves(probe["grpc"]["port"], seconds)
        path, port = probe["httpGet"]["path"], self.port(probe["httpGet"]["port"])
        try:
            answer = urllib3.request("GET", f"http://{self.address}:{port}{path}", timeout=seconds, retries=False)
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200

    def _serves(self, port: int, seconds: float) -> bool:
        try:
            wait_until_serving(f"{self.address}:{port}", seconds=seconds)
        except DoesNotStart:
            return False
        return True

    def port(self, name: str) -> int:
        [port] = [entry["containerPort"] for entry in self.container["ports"] if entry["name"] == name]
        return int(port)

    def wait_until_ready(self) -> None:
        """By its own probes, within the time that they give. What ends before is started again, as a cluster would."""
        startup = self.container["startupProbe"]
        deadline = time.monotonic() + startup["periodSeconds"] * startup["failureThreshold"]
        for probe in (startup, self.container["readinessProbe"]):
            while not self.answers(probe):
                if not self.process.alive:
                    self.restarts += 1
                    self.start()
                assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.log.read_text()[-4000:]}"
                time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """preStop, SIGTERM, and the grace period, which must be enough."""
        grace = self.template["spec"]["terminationGracePeriodSeconds"]
        started = time.monotonic()
        stop = self.container.get("lifecycle", {}).get("preStop")
        if stop:
            program, *arguments = stop["exec"]["command"]
            assert program == "python3", "what every image has"
            subprocess.run([sys.executable, *arguments], check=True, timeout=grace)
        code = self.process.end(signal.SIGTERM, seconds=max(0.0, grace - (time.monotonic() - started)))
        assert code != -signal.SIGKILL, f"{self.name} did not end within {grace} s:\n{self.log.read_text()[-4000:]}"


@dataclass
class LocalCluster:
    """Start with `apply`; `stop` ends everything."""

    made: Rendering
    folder: Path
    secrets: Secrets
    programs: Mapping[str, Path] = field(default_factory=dict)
    """Where the images' programs are; without any, those of this checkout."""
    pods: dict[str, list[Pod]] = field(default_factory=dict)
    """By Deployment."""

    def __post_init__(self) -> None:
        self._numbers = count(1)
        # Another system's pods, or those that a killed one has left behind, are elsewhere.
        net = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}"
        hosts = (f"{net}.{n}" for n in range(1, 255))
        self._deployments = {d["metadata"]["name"]: d for d in self.made.of("Deployment")}
        self._addresses = {
            name: [next(hosts) for _ in range(deployment["spec"].get("replicas", 1) + SURGE)]
            for name, deployment in self._deployments.items()
        }

    # --- life -----------------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """As `helm install`: hooks before, then everything at once, until all are ready and all jobs have succeeded."""
        jobs = self.made.of("Job")
        hooks = [job for job in jobs if "helm.sh/hook" in job["metadata"].get("annotations", {})]
        for job in hooks:
            self.run_job(job)
        for name, deployment in self._deployments.items():
            for _ in range(deployment["spec"]["replicas"]):
                self._add(name)
        for job in jobs:
            if job not in hooks:
                self.run_job(job)
        for pods in self.pods.values():
            for pod in pods:
                pod.wait_until_ready()

    def run_job(self, job: Manifest) -> str:
        """Until it succeeds, as often as it may be tried. Returns what it wrote."""
        output = ""
        for attempt in range(job["spec"]["backoffLimit"] + 1):
            if attempt:
                time.sleep(5.0)
            code, output = self.run_pod(job["metadata"]["name"], job["spec"]["template"])
            if code == 0:
                return output
        raise AssertionError(f"{job['metadata']['name']} does not succeed:\n{output[-4000:]}")

    def run_pod(self, name: str, template: Manifest) -> tuple[int, str]:
        """Once, to its end. Returns its exit code and what it wrote."""
        folder = self._folder(name)
        environment, command = self._prepare(template, "127.0.0.1", folder)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        return done.returncode, done.stdout + done.stderr

    def roll(self, name: str) -> None:
        """Replace each pod of a Deployment: a new one is ready before an old one ends."""
        for old in [*self.pods[name]]:
            new = self._add(name)
            new.wait_until_ready()
            old.end()
            self.pods[name].remove(old)

    def stop(self) -> None:
        for pods in self.pods.values():
            for pod in pods:
                pod.process.send(signal.SIGTERM)
        for pods in self.pods.values():
            for pod in pods:
                pod.process.end(signal.SIGKILL)

    def target(self, name: str, port: int) -> str:
        """What the cluster's DNS would say of a Service, as a gRPC target."""
        return "ipv4:" + ",".join(f"{address}:{port}" for address in self._addresses[name])

    # --- pods -----------------------------------------------------------------------------------------------------

    def _add(self, name: str) -> Pod:
        pods = self.pods.setdefault(name, [])
        taken = {pod.address for pod in pods}
        address = next(address for address in self._addresses[name] if address not in taken)
        template, folder = self._deployments[name]["spec"]["template"], self._folder(name)
        environment, command = self._prepare(template, address, folder)
        ports = {entry["name"]: entry["containerPort"] for entry in template["spec"]["containers"][0]["ports"]}
        # A pod has the addresses of its own network to itself; here it shares the machine's.
        environment["ROOKERY_METRICS_HOST"] = address
        if "grpc" in ports:
            environment["ROOKERY_ADDRESS"] = f"{address}:{ports['grpc']}"
        if "jobs" in ports:
            environment["ROOKERY_JOB_ADDRESS"] = f"{address}:{ports['jobs']}"
        process = ServerProcess(command, log=folder / "log", env=environment)
        pod = Pod(
            name=name,
            address=address,
            template=template,
            folder=folder,
            environment=environment,
            command=command,
            process=process,
        )
        pods.append(pod)
        return pod

    def _folder(self, name: str) -> Path:
        folder = self.folder / f"{next(self._numbers)}-{name}"
        folder.mkdir(parents=True)
        return folder

    def _prepare(self, template: Manifest, address: str, folder: Path) -> tuple[dict[str, str], list[str]]:
        """Environment and command of a pod's container, with its volumes in a folder."""
        [container] = template["spec"]["containers"]
        mounts = self._mount(template, container, folder)
        environment = {entry["name"]: self._value(entry) for entry in container.get("env", [])}
        environment = {name: self._local_text(value, mounts) for name, value in environment.items()}
        temporary = str(mounts["/tmp"])  # the home of all our images, too
        kept = {"PATH": "/usr/bin:/bin", "HOME": temporary, "TMPDIR": temporary}
        kept["PYTHONPATH"] = "" if self.programs else ":".join(sys.path)
        program, *arguments = [self._local_text(word, mounts) for word in container["command"]]
        found = self.programs.get(program, Path(sys.executable).with_name(program))
        command = [str(found), *arguments]
        if may_mount() and container["securityContext"]["readOnlyRootFilesystem"]:
            writable = [str(mounts[m["mountPath"]]) for m in container["volumeMounts"] if not m.get("readOnly")]
            command = on_read_only_root(command, writable)
        return {**kept, **environment}, command

    def _mount(self, template: Manifest, container: Manifest, folder: Path) -> dict[str, Path]:
        """The folder for each mount path. ConfigMaps are written; everything else is empty."""
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        mounts: dict[str, Path] = {}
        for mount in container.get("volumeMounts", []):
            place = folder / mount["name"]
            place.mkdir(exist_ok=True)
            mounts[mount["mountPath"]] = place
            if "configMap" in volumes[mount["name"]]:
                data = self.made.one("ConfigMap", volumes[mount["name"]]["configMap"]["name"])["data"]
                for file, text in data.items():
                    (place / file).write_text(text)
        return mounts

    def _value(self, entry: Manifest) -> str:
        if "value" in entry:
            return str(entry["value"])
        reference = entry["valueFrom"]["secretKeyRef"]
        return self.secrets[reference["name"]][reference["key"]]

    def _local_text(self, text: str, mounts: Mapping[str, Path]) -> str:
        for path, place in mounts.items():
            if text == path or text.startswith(f"{path}/"):
                return f"{place}{text.removeprefix(path)}"
        return _NAME.sub(lambda found: self.target(found[1], int(found[2])), self._one_profile(text))

    def _one_profile(self, text: str) -> str:
        """A name with a place for the profile, where there is one profile only."""
        found = re.search(r"dns:///([a-z0-9-]+-)\{profile\}", text)
        if found is None:
            return text
        [name] = [name for name in self._addresses if name.startswith(found[1])]
        return text.replace("{profile}", name.removeprefix(found[1]))


@contextmanager
def running_pair(folder: Path, database_url: str, programs: Mapping[str, Path] | None = None) -> Iterator[LocalCluster]:
    """The chart with the tiny model as teacher alpha and as student beta, on a Redis and an S3 server of its own."""
    with start_moto() as s3, start_redis(folder / "redis") as redis:
        values: dict[str, Any] = {
            **PAIR,
            "coordinator": {"settings": {"lease_seconds": 10, "forgotten_seconds": 20}},
            "workloadDefaults": {"settings": {"torch_threads": 1}},
            "store": {"url": f"s3://{s3.bucket}/{folder.name}", "endpoint": s3.endpoint, "secure": False},
            "test": {"teacher": "alpha", "student": "beta"},
        }
        secrets = {
            "rookery-database": {"url": database_url},
            "rookery-broker": {"url": redis.url},
            "rookery-store": {"access-key": s3.access_key, "secret-key": s3.secret_key},
        }
        cluster = LocalCluster(render(values), folder / "pods", secrets, programs or {})
        try:
            cluster.apply()
            yield cluster
        finally:
            cluster.stop()
