"""Objects in a bucket of any S3 server, through MinIO's SDK."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from minio import Minio
from minio.error import InvalidResponseError, S3Error

from rookery_shared.errors import ObjectMissing

_MISSING = {"NoSuchKey", "NoSuchObject", "NoSuchBucket"}


class S3Store:
    """One prefix of one bucket. The bucket must exist."""

    def __init__(self, client: Minio, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def upload(self, path: Path, key: str) -> None:
        self._client.fput_object(self._bucket, self._prefix + key, str(path))

    def download(self, key: str, path: Path) -> None:
        try:
            self._client.fget_object(self._bucket, self._prefix + key, str(path))
        except (S3Error, InvalidResponseError) as error:
            raise _translated(error, key) from error

    def write(self, key: str, data: bytes) -> None:
        self._client.put_object(self._bucket, self._prefix + key, io.BytesIO(data), len(data))

    def read(self, key: str) -> bytes:
        try:
            response = self._client.get_object(self._bucket, self._prefix + key)
        except (S3Error, InvalidResponseError) as error:
            raise _translated(error, key) from error
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    def remove(self, key: str) -> None:
        self._client.remove_object(self._bucket, self._prefix + key)

    def keys(self, prefix: str) -> Iterator[str]:
        for entry in self._client.list_objects(self._bucket, prefix=self._prefix + prefix, recursive=True):
            yield str(entry.object_name).removeprefix(self._prefix)


def _translated(error: S3Error | InvalidResponseError, key: str) -> Exception:
    """ObjectMissing for a 404 of any server; some answer it in a form that the SDK cannot read."""
    if isinstance(error, S3Error):
        missing = error.code in _MISSING
    else:
        missing = error._code == 404
    return ObjectMissing(f"no object {key}", key=key) if missing else error
