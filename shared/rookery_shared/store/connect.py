"""Builds the store that the settings name."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio

from rookery_shared.settings import StoreSettings
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.local import LocalStore
from rookery_shared.store.s3 import S3Store

CONNECT_SECONDS, SILENCE_SECONDS = 5.0, 20.0
"""For which a server may keep a caller waiting: whoever reads or writes has a job to do, and a lease to keep."""
UNANSWERED, REFUSED = 2, 5
"""How often a request is made again that was not answered, and one that was answered with an error that passes."""


def connect_store(settings: StoreSettings) -> ObjectStore:
    """Where adapters live. Raises ValueError for a URL of another kind."""
    return open_url(settings.store_url, settings)


def open_cache(store: ObjectStore, settings: StoreSettings) -> AdapterCache:
    """Verified copies of the store's adapters, where and as many as the settings say."""
    return AdapterCache(store, settings.cache_folder, max_bytes=settings.cache_bytes)


def open_url(store_url: str, settings: StoreSettings) -> ObjectStore:
    """A folder, or a prefix of a bucket of the S3 server in the settings. Raises ValueError for another kind."""
    url = urlsplit(store_url)
    if url.scheme == "file":
        return LocalStore(Path(url.path))
    if url.scheme == "s3" and url.netloc:
        client = Minio(
            settings.s3_endpoint,
            access_key=settings.s3_access_key.get_secret_value() or None,
            secret_key=settings.s3_secret_key.get_secret_value() or None,
            secure=settings.s3_secure,
            region=settings.s3_region,
            http_client=_http(),
        )
        return S3Store(client, bucket=url.netloc, prefix=url.path)
    raise ValueError(f"store URL {store_url!r} is neither file:///folder nor s3://bucket/prefix")


def _http() -> urllib3.PoolManager:
    """As minio makes it for itself, but for its patience of half an hour."""
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=SILENCE_SECONDS),
        retries=urllib3.Retry(
            total=UNANSWERED + REFUSED,
            connect=UNANSWERED,
            read=UNANSWERED,
            status=REFUSED,
            backoff_factor=0.2,
            status_forcelist=[500, 502, 503, 504],
        ),
        maxsize=10,
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )
