"""Atomic publish: wherever a publisher dies, readers find no adapter, or a whole one that verifies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from minio import Minio

from rookery_shared.errors import AdapterCorrupt, ObjectMissing
from rookery_shared.store.adapters import (
    MANIFEST,
    AdapterCache,
    Origin,
    adapter_name,
    check_stored,
    publish,
    read_manifest,
)
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import connect_store
from rookery_shared.store.s3 import S3Store
from tests.adapter_files import write_adapter_files
from tests.faults.proxy import Proxy, Way
from tests.requirements.removal import Removal
from tests.servers.s3 import REGION, S3Server

ADAPTERS = "shared/rookery_shared/store/adapters.py"
REMOVALS = [
    Removal(
        what="the manifest comes last: a publisher is killed",
        file=ADAPTERS,
        old="    fault_point(Point.PUBLISHING)\n",
        new='    store.write(f"{name}/{MANIFEST}", manifest.encoded())\n    fault_point(Point.PUBLISHING)\n',
        test="test_a_publisher_killed_between_two_writes[moto_server-file-stored#1]",
    ),
    Removal(
        what="the manifest comes last: an upload is cut",
        file=ADAPTERS,
        old="    fault_point(Point.PUBLISHING)\n",
        new='    store.write(f"{name}/{MANIFEST}", manifest.encoded())\n    fault_point(Point.PUBLISHING)\n',
        test="test_an_upload_cut_at_any_byte[rclone_server]",
    ),
    Removal(
        what="an adapter's name is the digest of its manifest",
        file=ADAPTERS,
        old="    name = adapter_name(manifest.digest)\n    fault",
        new='    name = adapter_name("0" * 64)\n    fault',
        test="test_two_publishers_and_their_readers[moto_server]",
    ),
]

ORIGIN = Origin(base_model="b", base_revision="", rank=8, job="j", epoch=1, seed=0)
CUTS = 14
PUBLISH = """
import sys
from pathlib import Path
from rookery_shared.settings import StoreSettings
from rookery_shared.store.adapters import Origin, publish
from rookery_shared.store.connect import connect_store
origin = Origin(base_model="b", base_revision="", rank=8, job="j", epoch=1, seed=0)
publish(connect_store(StoreSettings()), Path(sys.argv[1]), origin)
"""


@pytest.fixture(params=["moto_server", "rclone_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """One that can write on a condition, and one that cannot: nothing here needs it."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


def open_at(server: S3Server, prefix: str, *, endpoint: str = "") -> S3Store:
    """A store that does not try again."""
    client = Minio(
        endpoint or server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        secure=False,
        region=REGION,
        http_client=urllib3.PoolManager(retries=False, timeout=10.0),
    )
    return S3Store(client, bucket=server.bucket, prefix=prefix)


def open_patiently(server: S3Server, prefix: str) -> ObjectStore:
    """As services do. moto answers 500 to one of two who write the same key at once."""
    return connect_store(server.store_settings(store_url=f"s3://{server.bucket}/{prefix}"))


def visible(store: ObjectStore, cache: Path) -> list[str]:
    """Adapters that readers find: whatever has a manifest must be whole. Raises what a reader would otherwise."""
    names = []
    for key in [*store.keys("adapters/")]:
        if key.endswith(f"/{MANIFEST}"):
            name = key.removesuffix(f"/{MANIFEST}")
            try:
                read_manifest(store, name)
            except (AdapterCorrupt, ObjectMissing):
                continue  # cut in the middle, and so none; rclone tidies it up a little later
            AdapterCache(store, cache).hold(name)
            names.append(name)
    return names


def settle(store: ObjectStore) -> None:
    """Until the server has done with an upload that was cut."""
    before: set[str] | None = None
    while before != (now := {*store.keys("")}):
        before = now
        time.sleep(0.1)


@pytest.mark.parametrize("fault", ["publishing#1", "file-stored#1", "file-stored#2", "published#1"])
def test_a_publisher_killed_between_two_writes(fault: str, server: S3Server, tmp_path: Path) -> None:
    point, _, time = fault.partition("#")
    folder, prefix = write_adapter_files(tmp_path / "adapter"), uuid.uuid4().hex
    environment = os.environ | server.settings | {"ROOKERY_STORE_URL": f"s3://{server.bucket}/{prefix}"}
    argv = [sys.executable, "-c", PUBLISH, str(folder)]
    died = subprocess.run(argv, env=environment | {"ROOKERY_FAULTS": f"{point}=kill#{time}"}, check=False)
    assert died.returncode == -signal.SIGKILL
    store = open_at(server, prefix)
    stored = len([*store.keys("")])
    assert stored == {"publishing#1": 0, "file-stored#1": 1, "file-stored#2": 2, "published#1": 3}[fault]
    assert len(visible(store, tmp_path / "cache")) == (stored == 3)
    assert subprocess.run(argv, env=environment, check=False).returncode == 0
    assert len(visible(store, tmp_path / "cache")) == 1


def test_an_upload_cut_at_any_byte(server: S3Server, tmp_path: Path) -> None:
    """Cut in its headers, in its files and in its manifest, and at the ends of each."""
    folder = write_adapter_files(tmp_path / "adapter", padding=20_000)
    with Proxy(server.endpoint) as proxy:
        publish(open_at(server, uuid.uuid4().hex, endpoint=proxy.address), folder, ORIGIN)
        whole = proxy.passed[Way.UP]
        outcomes = []
        for cut in range(CUTS):
            prefix = uuid.uuid4().hex
            store = open_at(server, prefix)
            proxy.truncate(cut * (whole - 1) // (CUTS - 1))
            with pytest.raises(Exception):  # noqa: B017, PT011  # of urllib3 or the SDK, as it happens
                publish(open_at(server, prefix, endpoint=proxy.address), folder, ORIGIN)
            proxy.heal()
            settle(store)
            outcomes.append(len(visible(store, tmp_path / f"cache-{cut}")))
            name = adapter_name(publish(open_at(server, prefix, endpoint=proxy.address), folder, ORIGIN).digest)
            check_stored(store, name)
            assert visible(store, tmp_path / f"cache-{cut}") == [name]
    assert outcomes[0] == 0


def test_two_publishers_and_their_readers(server: S3Server, tmp_path: Path) -> None:
    """Of one adapter, both at once and again: who reads meanwhile gets nothing or all of it."""
    folder, prefix = write_adapter_files(tmp_path / "adapter", padding=100_000), uuid.uuid4().hex
    over = threading.Event()
    expected = adapter_name(publish(open_at(server, uuid.uuid4().hex), folder, ORIGIN).digest)

    def read(number: int) -> int:
        store, found = open_at(server, prefix), 0
        while not over.is_set():
            try:
                check_stored(store, expected)
            except Exception:  # refused, or a file that changed under the server: none the worse
                continue
            found += 1
        return found

    def write(_: int) -> None:
        for _ in range(4):
            publish(open_patiently(server, prefix), folder, ORIGIN)

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read, number) for number in range(2)]
        try:
            list(threads.map(write, range(2)))
        finally:
            over.set()
    check_stored(open_at(server, prefix), expected)
    assert visible(open_at(server, prefix), tmp_path / "cache") == [expected]
    assert all(reader.exception() is None for reader in readers)
