"""Links to an adapter's files: what the API answers, and that they lead to the bytes that it names."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any, cast

import pytest
import urllib3

from rookery.v1 import adapter_service_pb2 as pb
from rookery_coordinator.api.adapters import AdapterApi
from rookery_coordinator.api.base import Units
from rookery_coordinator.database import Database
from rookery_coordinator.inventory import Inventory
from rookery_coordinator.tables import Adapter
from rookery_shared.errors import InvalidField, NoLinks, UnknownResource
from rookery_shared.store.adapters import FILES, AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.connect import connect_store
from rookery_shared.store.local import LocalStore
from tests.adapter_files import write_adapter_files
from tests.integration.worlds import STUDENT, make_profiles
from tests.servers.s3 import S3Server


class Api:
    """The service without a server, and one adapter."""

    def __init__(self, database: Database, store: ObjectStore, folder: Path) -> None:
        self.api = AdapterApi(Units(database), store, AdapterCache(store, folder / "cache"), Inventory(database, store))
        origin = Origin(base_model="m", base_revision="", rank=8, job="j", epoch=1, seed=0)
        self.name = adapter_name(publish(store, write_adapter_files(folder / "adapter"), origin).digest)
        make_profiles(database)
        with database.write() as session:
            row = Adapter(name=self.name, profile=STUDENT, parent="p", job="j", base_model="m", rank=8, size_bytes=1)
            row.training = {}
            session.add(row)

    def links(self, name: str = "", *, seconds: int | None = None) -> pb.DownloadLinks:
        request = pb.CreateDownloadLinksRequest(name=name or self.name)
        if seconds is not None:
            request.lifetime.FromSeconds(seconds)
        return asyncio.run(self.api.CreateDownloadLinks(request, cast(Any, None)))


@pytest.fixture
def s3_store(moto_server: S3Server) -> ObjectStore:
    return connect_store(moto_server.store_settings())


def test_links_lead_to_the_adapter(database: Database, s3_store: ObjectStore, tmp_path: Path) -> None:
    made = Api(database, s3_store, tmp_path).links(seconds=60)
    assert [link.file for link in made.links] == [*FILES]
    assert 55 < made.expire_time.ToMilliseconds() / 1000 - time.time() <= 60
    for link in made.links:
        content = urllib3.request("GET", link.url).data
        assert (len(content), hashlib.sha256(content).hexdigest()) == (link.size_bytes, link.sha256)


def test_what_cannot_be_linked_is_refused(database: Database, s3_store: ObjectStore, tmp_path: Path) -> None:
    api = Api(database, s3_store, tmp_path)
    for seconds in (0, -1, 8 * 86_400):
        with pytest.raises(InvalidField, match="lifetime"):
            api.links(seconds=seconds)
    with pytest.raises(UnknownResource):
        api.links(f"adapters/{'0' * 64}")


def test_a_folder_has_no_links(database: Database, tmp_path: Path) -> None:
    with pytest.raises(NoLinks, match="folder"):
        Api(database, LocalStore(tmp_path / "objects"), tmp_path).links()
