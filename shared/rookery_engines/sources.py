"""Where a profile's model is loaded from. Models in an object store are fetched into a local folder first."""

from __future__ import annotations

import shutil
import tempfile
from hashlib import sha256
from pathlib import Path, PurePosixPath

from minio.error import MinioException, ServerError
from urllib3.exceptions import HTTPError

from rookery.v1 import model_service_pb2
from rookery_engines.models import ModelSource
from rookery_shared.errors import ModelNotLoadable, ObjectMissing, StoreUnavailable
from rookery_shared.settings import ModelServiceSettings, StoreSettings
from rookery_shared.store.connect import open_url

FILES = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})
"""What a model is made of. Nothing else is fetched, least of all pickles."""


PASSING = frozenset({"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"})
"""Errors of an S3 server that another attempt may not meet."""


def source_of(profile: model_service_pb2.Profile, settings: ModelServiceSettings) -> ModelSource:
    """Raises ModelNotLoadable if the object store has no such model, StoreUnavailable if that cannot be found out."""
    source = profile.model.source
    return ModelSource(
        source=source,
        revision=profile.model.revision,
        dtype=profile.dtype,
        chat=profile.chat,
        folder=str(_fetch(source, settings)) if source.startswith("s3://") else "",
        device=settings.device,
    )


def _fetch(source: str, settings: StoreSettings) -> Path:
    """A local folder with the files under an S3 prefix, fetched once: what lies there is taken not to change."""
    folder = settings.cache_folder / "models" / sha256(source.encode()).hexdigest()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    try:
        store = open_url(source, settings)
        keys = [key for key in store.keys("") if PurePosixPath(key).suffix in FILES and "/" not in key]
        if "config.json" not in keys:
            raise ModelNotLoadable(f"there is no model at {source}: it has no config.json", source=source)
        for key in keys:
            store.download(key, unfinished / key)
        try:
            unfinished.replace(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    except HTTPError as error:
        raise StoreUnavailable(f"cannot fetch {source}: {error}", source=source) from error
    except (MinioException, ObjectMissing, ValueError) as error:
        if isinstance(error, ServerError) or getattr(error, "code", "") in PASSING:
            raise StoreUnavailable(f"cannot fetch {source}: {error}", source=source) from error
        raise ModelNotLoadable(f"cannot fetch {source}: {error}", source=source) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
