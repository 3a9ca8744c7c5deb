"""The publish protocol: adapters are immutable, named by the SHA-256 of their manifests, and verified on every read.

Files first, manifest last: a folder without a manifest is not an adapter. The manifest lists every file with its size
and SHA-256, so the one digest in its name vouches for all bytes. Two who publish under one name write the same bytes,
so nothing here needs a store that can write on a condition.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rookery.tracing import step
from rookery_shared.admission import admit, open_regular
from rookery_shared.errors import AdapterCorrupt, AdapterRefused, ObjectMissing
from rookery_shared.faults import Point, fault_point
from rookery_shared.log import get_logger
from rookery_shared.metrics import ADAPTER_LOAD_LAG, ADAPTER_PUBLISHES, ADAPTERS_REFUSED, note
from rookery_shared.peft_format import CONFIG, WEIGHTS
from rookery_shared.settings import CACHE_BYTES
from rookery_shared.store.base import ObjectStore
from rookery_shared.store.copies import Copies, Hold

PREFIX = "adapters/"
MANIFEST = "manifest.json"
FILES = (CONFIG, WEIGHTS)
"""PEFT's own layout, and nothing else: no pickles, no code."""
FETCHES_HELD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an adapter comes from."""

    base_model: str
    base_revision: str
    rank: int
    job: str
    epoch: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Origin):
    """What an adapter is and where it comes from."""

    files: tuple[FileEntry, ...]

    def encoded(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encoded()).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.files)


_MANIFEST = TypeAdapter(Manifest)
_NAME = re.compile(re.escape(PREFIX) + "[0-9a-f]{64}")


def adapter_name(digest: str) -> str:
    return f"{PREFIX}{digest}"


def is_adapter_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def publish(store: ObjectStore, folder: Path, origin: Origin) -> Manifest:
    """Store the adapter in `folder`. Repeating it is harmless: the same bytes go to the same place.

    Only the two files of `FILES` are taken. Raises AdapterRefused if they are not those of a plain LoRA adapter.
    """
    result = "failed"
    try:
        with step("publish adapter") as span:
            manifest = _publish(store, folder, origin)
            span.set_attribute("rookery.adapter", adapter_name(manifest.digest))
        result = "published"
        get_logger().info("adapter published", adapter=adapter_name(manifest.digest))
    except AdapterRefused:
        result = "refused"
        raise
    finally:
        note(ADAPTER_PUBLISHES, result=result)
    return manifest


def _publish(store: ObjectStore, folder: Path, origin: Origin) -> Manifest:
    admit(folder, name=f"the adapter of job {origin.job}", rank=origin.rank)
    files = tuple(_entry(folder / name) for name in FILES)
    manifest = Manifest(files=files, **asdict(origin))
    name = adapter_name(manifest.digest)
    fault_point(Point.PUBLISHING)
    for entry in files:
        store.upload(folder / entry.name, f"{name}/{entry.name}")
        fault_point(Point.FILE_STORED)
    store.write(f"{name}/{MANIFEST}", manifest.encoded())
    fault_point(Point.PUBLISHED, adapter=name, job=origin.job, epoch=origin.epoch)
    return manifest


def read_manifest(store: ObjectStore, name: str) -> Manifest:
    """Raises AdapterRefused for what is no adapter's name, ObjectMissing, or AdapterCorrupt if the manifest is not the
    one that the name vouches for.
    """
    if not is_adapter_name(name):
        raise AdapterRefused(f"{name[:200]!r} is not the name of an adapter", adapter=name[:200])
    encoded = store.read(f"{name}/{MANIFEST}")
    if hashlib.sha256(encoded).hexdigest() != name.removeprefix(PREFIX):
        raise AdapterCorrupt(f"the manifest of {name} does not match its name", adapter=name)
    try:
        manifest = _MANIFEST.validate_json(encoded)
    except ValidationError as error:
        raise AdapterCorrupt(f"the manifest of {name} is malformed: {error}", adapter=name) from None
    if sorted(entry.name for entry in manifest.files) != sorted(FILES):
        raise AdapterCorrupt(f"{name} has other files than {', '.join(FILES)}", adapter=name)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedAdapter:
    """A verified copy of an adapter, which stays where it is for as long as somebody has this."""

    folder: Path
    manifest: Manifest
    hold: Hold


class AdapterCache:
    """Verified copies of adapters in a local folder, which other processes may share.

    They are kept to `max_bytes`: those that were used longest ago make room, but none that anybody holds.
    """

    def __init__(self, store: ObjectStore, folder: Path, *, max_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._copies = Copies(folder / "adapters", max_bytes=max_bytes)
        self._fetched: deque[CachedAdapter] = deque(maxlen=FETCHES_HELD)

    def hold(self, name: str) -> CachedAdapter:
        """A folder with the adapter's files, every byte checked now, also when it was here before.

        Raises ObjectMissing if the store lacks it, AdapterCorrupt if its bytes do not verify, AdapterRefused if they
        are not those of a plain LoRA adapter.
        """
        started = time.monotonic()
        try:
            with step("fetch adapter", attributes={"rookery.adapter": name[:200]}):
                manifest = read_manifest(self._store, name)
                hold = self._held(manifest) or self._download(name, manifest)
        except (AdapterCorrupt, AdapterRefused, ObjectMissing) as error:
            note(ADAPTERS_REFUSED, reason=error.reason)
            get_logger().warning("adapter not loaded", adapter=name[:200], reason=error.reason)
            raise
        finally:
            note(ADAPTER_LOAD_LAG, time.monotonic() - started)
        self._copies.tidy()
        return CachedAdapter(folder=self._copies.folder / manifest.digest, manifest=manifest, hold=hold)

    def fetch(self, name: str) -> tuple[Path, Manifest]:
        """As `hold`, for who reads the files at once: they are held until `FETCHES_HELD` later fetches."""
        cached = self.hold(name)
        self._fetched.append(cached)
        return cached.folder, cached.manifest

    def _held(self, manifest: Manifest) -> Hold | None:
        """The copy that is here, if its files are there, with the right bytes and nothing beside them."""
        hold, folder = self._copies.hold(manifest.digest), self._copies.folder / manifest.digest
        try:
            entries = all(_entry(folder / entry.name) == entry for entry in manifest.files)
            return hold if entries and len([*folder.iterdir()]) == len(manifest.files) else None
        except OSError:
            return None

    def _download(self, name: str, manifest: Manifest) -> Hold:
        with self._copies.making(manifest.digest) as folder:
            _fetch_files(self._store, name, manifest, folder)
            with self._copies.changing():
                return self._held(manifest) or self._copies.put(folder, manifest.digest)  # another may have been first


def check_stored(store: ObjectStore, name: str) -> None:
    """Read all of an adapter. Raises what `AdapterCache.hold` raises."""
    with tempfile.TemporaryDirectory(prefix="rookery-check-") as folder:
        _fetch_files(store, name, read_manifest(store, name), Path(folder))


def make_links(store: ObjectStore, name: str, *, seconds: float) -> list[tuple[FileEntry, str]]:
    """The files of an adapter, and links to them. Raises NoLinks, and what `read_manifest` raises."""
    manifest = read_manifest(store, name)
    return [(entry, store.link(f"{name}/{entry.name}", seconds=seconds)) for entry in manifest.files]


def _fetch_files(store: ObjectStore, name: str, manifest: Manifest, folder: Path) -> None:
    """Into a folder, every byte verified and admitted."""
    for entry in manifest.files:
        store.download(f"{name}/{entry.name}", folder / entry.name)
        if _entry(folder / entry.name) != entry:
            raise AdapterCorrupt(f"{entry.name} of {name} does not match its digest", adapter=name)
    admit(folder, name=name, rank=manifest.rank)


def _entry(path: Path) -> FileEntry:
    with open_regular(path) as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return FileEntry(name=path.name, size=opened.tell(), sha256=digest)
