"""Every driver keeps the same promises, on every server at hand."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import urllib3
from minio.error import InvalidResponseError, S3Error
from pydantic import SecretStr
from urllib3.exceptions import HTTPError

from rookery_shared.errors import AdapterCorrupt, NoLinks, ObjectMissing, StoreUnusable
from rookery_shared.settings import StoreSettings
from rookery_shared.store import connect
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, check_stored, make_links, publish
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import connect_store
from rookery_shared.store.probing import check_reads, check_writes, open_store
from rookery_shared.store.s3 import S3Store
from tests.adapter_files import write_adapter_files
from tests.faults.proxy import Proxy
from tests.servers.s3 import S3Server


def local(request: pytest.FixtureRequest) -> ObjectStore:
    return connect_store(StoreSettings(store_url=f"file://{request.getfixturevalue('tmp_path')}/objects"))


def moto(request: pytest.FixtureRequest) -> ObjectStore:
    return connect_store(request.getfixturevalue("moto_server").store_settings())


def rclone(request: pytest.FixtureRequest) -> ObjectStore:
    return connect_store(request.getfixturevalue("rclone_server").store_settings())


def environment(request: pytest.FixtureRequest) -> ObjectStore:
    """Any server: ROOKERY_TEST_S3_URL=s3://bucket/prefix and ROOKERY_S3_* as a service takes them."""
    url = os.environ.get("ROOKERY_TEST_S3_URL")
    if not url:
        pytest.skip("ROOKERY_TEST_S3_URL names no server")
    return connect_store(StoreSettings(store_url=f"{url}/{uuid.uuid4().hex}"))


@pytest.fixture(params=[local, moto, rclone, environment], ids=lambda make: make.__name__)
def store(request: pytest.FixtureRequest) -> ObjectStore:
    make: Callable[[pytest.FixtureRequest], ObjectStore] = request.param
    return make(request)


def test_what_is_written_is_read(store: ObjectStore) -> None:
    store.write("a/b/c.bin", b"\x00\x01")
    assert store.read("a/b/c.bin") == b"\x00\x01"
    store.write("a/b/c.bin", b"new")
    assert store.read("a/b/c.bin") == b"new"


def test_files_go_up_and_down(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "up").write_bytes(content)
    store.upload(tmp_path / "up", "folder/file")
    store.download("folder/file", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content


def test_what_is_not_there_is_missing(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        store.read("no/such/thing")
    with pytest.raises(ObjectMissing):
        store.download("no/such/thing", tmp_path / "x")


def test_keys_are_listed_by_prefix(store: ObjectStore) -> None:
    for key in ("a/1", "a/2/x", "b/1"):
        store.write(key, b"x")
    assert sorted(store.keys("a/")) == ["a/1", "a/2/x"]


def test_objects_have_a_size_and_a_time(store: ObjectStore) -> None:
    store.write("a/1", b"four")
    [stored] = store.objects("a/")
    assert (stored.key, stored.size) == ("a/1", 4)
    assert abs(stored.modified - time.time()) < 60
    assert [*store.interrupted("")] == []
    store.abort("", before=time.time() + 60)
    assert store.read("a/1") == b"four"


@pytest.mark.parametrize("make", [moto, rclone], ids=lambda make: make.__name__)
def test_unfinished_multipart_uploads_are_removed(
    make: Callable[[pytest.FixtureRequest], ObjectStore], request: pytest.FixtureRequest
) -> None:
    store = make(request)
    assert isinstance(store, S3Store)
    for key in ("adapters/x/weights", "unfinished/j/checkpoint"):
        store._client._create_multipart_upload(store._bucket, store._prefix + key, {})
    assert sorted(stored.key for stored in store.interrupted("")) == ["adapters/x/weights", "unfinished/j/checkpoint"]
    [stored] = store.interrupted("adapters/")
    store.abort("", before=stored.modified - 60)
    assert len([*store.interrupted("")]) == 2, "young ones are under way"
    store.abort("", before=stored.modified + 60)
    assert [*store.interrupted("")] == []


def test_adapters_are_published_and_verified(store: ObjectStore, tmp_path: Path) -> None:
    folder = write_adapter_files(tmp_path / "adapter")
    origin = Origin(base_model="b", base_revision="", rank=8, job="j", epoch=1, seed=0)
    name = adapter_name(publish(store, folder, origin).digest)
    fetched, manifest = AdapterCache(store, tmp_path / "cache").fetch(name)
    weights = (fetched / "adapter_model.safetensors").read_bytes()
    assert weights == (folder / "adapter_model.safetensors").read_bytes()
    assert manifest.base_model == "b"
    store.write(f"{name}/adapter_model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(AdapterCorrupt):
        AdapterCache(store, tmp_path / "other cache").fetch(name)


def test_many_may_publish_one_adapter_at_once(store: ObjectStore, tmp_path: Path) -> None:
    """No server needs to write on a condition for it."""
    folder = write_adapter_files(tmp_path / "adapter", padding=300_000)
    origin = Origin(base_model="b", base_revision="", rank=8, job="j", epoch=1, seed=0)
    with ThreadPoolExecutor(8) as threads:
        published = [*threads.map(lambda _: publish(store, folder, origin), range(16))]
    [name] = {adapter_name(manifest.digest) for manifest in published}
    check_stored(store, name)
    assert len([*store.keys("")]) == 3
    assert [*store.interrupted("")] == []


def test_a_publisher_that_dies_leaves_no_adapter(store: ObjectStore, tmp_path: Path) -> None:
    """After each of its writes; what it has left is no obstacle to the next."""
    folder = write_adapter_files(tmp_path / "adapter")
    origin = Origin(base_model="b", base_revision="", rank=8, job="j", epoch=1, seed=0)

    class Dying:
        """Ends with the process, so to speak, after some writes."""

        def __init__(self, writes: int) -> None:
            self.left = writes

        def upload(self, path: Path, key: str) -> None:
            self.count()
            store.upload(path, key)

        def write(self, key: str, data: bytes) -> None:
            self.count()
            store.write(key, data)

        def count(self) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1

    for writes in range(3):
        with pytest.raises(KeyboardInterrupt):
            publish(cast(ObjectStore, Dying(writes)), folder, origin)
        for name in {"/".join(key.split("/")[:2]) for key in store.keys("")}:
            with pytest.raises(ObjectMissing):
                AdapterCache(store, tmp_path / "cache").hold(name)
    check_stored(store, adapter_name(publish(store, folder, origin).digest))


def test_a_store_that_works_passes_the_probe_and_keeps_nothing_of_it(store: ObjectStore) -> None:
    check_writes(store)
    check_reads(store)
    assert [*store.keys("")] == []


def test_wrong_keys_and_a_missing_bucket_are_found_at_the_start(rclone_server: S3Server, moto_server: S3Server) -> None:
    wrong = rclone_server.store_settings(s3_secret_key=SecretStr("wrong-secret"))
    missing = moto_server.store_settings(store_url="s3://no-such-bucket/x")
    for settings in (wrong, missing):
        store = connect_store(settings)
        with pytest.raises(StoreUnusable, match="cannot write"):
            check_writes(store)
        with pytest.raises(StoreUnusable, match="cannot"):
            check_reads(store)
        with pytest.raises(SystemExit):
            open_store(settings, writes=False)


SERVICES = ["rookery_coordinator", "rookery_student", "rookery_teacher", "rookery_evaluator"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_without_a_store_does_not_start_and_says_why(service: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = {
        "ROOKERY_STORE_URL": f"file://{tmp_path}/file/objects",
        "ROOKERY_DATABASE_URL": f"sqlite:///{tmp_path}/rookery.db",
        "ROOKERY_PROFILE": "profiles/x",
        "ROOKERY_ADDRESS": f"unix:{tmp_path}/public.sock",
        "ROOKERY_JOB_ADDRESS": f"unix:{tmp_path}/jobs.sock",
    }
    done = subprocess.run(
        [sys.executable, "-m", service], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "STORE_UNUSABLE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("make", [moto, rclone], ids=lambda make: make.__name__)
def test_links_are_good_without_credentials_until_they_expire(
    make: Callable[[pytest.FixtureRequest], ObjectStore], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = make(request)
    origin = Origin(base_model="b", base_revision="", rank=8, job="j", epoch=1, seed=0)
    name = adapter_name(publish(store, write_adapter_files(tmp_path / "adapter"), origin).digest)
    for entry, url in make_links(store, name, seconds=60):
        content = urllib3.request("GET", url).data
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.size, entry.sha256)


def test_a_link_is_good_for_one_object_and_for_a_time(rclone_server: S3Server) -> None:
    store = connect_store(rclone_server.store_settings())
    store.write("a", b"x")
    store.write("b", b"x")
    url = store.link("a", seconds=1)
    assert urllib3.request("GET", url.replace("/a?", "/b?")).status == 403
    time.sleep(2.5)
    assert urllib3.request("GET", url).status in (400, 403)


def test_there_are_no_links_into_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NoLinks):
        connect_store(StoreSettings(store_url=f"file://{tmp_path}")).link("a", seconds=60)


def test_keys_of_the_settings_are_those_that_sign(rclone_server: S3Server) -> None:
    wrong = connect_store(rclone_server.store_settings(s3_secret_key=SecretStr("wrong-secret")))
    assert isinstance(wrong, S3Store)
    with pytest.raises((S3Error, InvalidResponseError)):
        wrong.write("x", b"x")


def test_a_server_that_falls_silent_keeps_nobody_waiting(
    moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease ends sooner than the half hour that the client would wait by itself."""
    monkeypatch.setattr(connect, "SILENCE_SECONDS", 0.5)
    with Proxy(moto_server.endpoint) as proxy:
        store = connect_store(moto_server.store_settings(s3_endpoint=proxy.address))
        store.write("a", b"x")
        proxy.half_open()
        started = time.monotonic()
        with pytest.raises(HTTPError):
            store.read("a")
        assert time.monotonic() - started < 10
        proxy.heal()
        assert store.read("a") == b"x"


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="neither file"):
        connect_store(StoreSettings(store_url="ftp://host/x"))
