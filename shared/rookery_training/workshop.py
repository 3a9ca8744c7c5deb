"""Trains the adapters of jobs and puts them into the store. Shared by the student and the teacher's trainer.

An attempt at a job that dies leaves behind, in the store, what came of it so far: the adapters that were finished and a
checkpoint of each that was not. The next attempt goes on from there, on whatever machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.v1 import model_service_pb2
from rookery_engines.models import ModelSource, load_model
from rookery_engines.sources import source_of
from rookery_shared.errors import ModelNotLoadable, ObjectMissing, Preempted
from rookery_shared.faults import Point, fault_point
from rookery_shared.jobs.lease import Lease
from rookery_shared.log import get_logger
from rookery_shared.settings import TrainerSettings
from rookery_shared.store.adapters import Origin, adapter_name, publish
from rookery_shared.store.base import UNFINISHED, ObjectStore
from rookery_shared.store.connect import connect_store, open_cache
from rookery_shared.types import Example, LoraRecipe, PolicyGradient
from rookery_shared.wire import training_to_proto
from rookery_training.base import NotTrainable
from rookery_training.batch import AdapterTask, BatchTrainer, Outcome
from rookery_training.loop import TrainingLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An adapter that a job asks for."""

    key: str
    examples: Sequence[Example]
    seed: int
    start: str = ""
    """Name of an adapter to go on from."""
    gradient: PolicyGradient | None = None
    """What the examples are trained for; None learns them by their likelihood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of an order: an adapter in the store, or the reason why there is none."""

    key: str
    adapter: pb.TrainedAdapter | None = None
    failure: str = ""


class Workshop:
    """One base model at a time, loaded when a job first needs it, and all jobs' adapters in one batch."""

    def __init__(self, settings: TrainerSettings) -> None:
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        self._settings = settings
        self._store = connect_store(settings)
        self._cache = open_cache(self._store, settings)
        self._loop: TrainingLoop[ModelSource] = TrainingLoop(self._load)
        self._writer = _Writer(self._store)

    def make(
        self, lease: Lease, profile: model_service_pb2.Profile, orders: Sequence[Order], recipe: LoraRecipe
    ) -> Iterator[Made]:
        """Train adapters of the profile's model for a job, together with those of other jobs; each when it is stored.

        Raises ModelNotLoadable, and what the lease raises for a job that must stop.
        """
        bench = _Bench(self._store, lease.job, self._writer)
        lease.when_over(bench.clear)
        finished = {order.key: made for order in orders if (made := bench.finished(order.key)) is not None}
        yield from finished.values()
        source = source_of(profile, self._settings)
        with bench.left_in_order(), tempfile.TemporaryDirectory(prefix="rookery-train-") as folder:
            tasks = {
                order.key: AdapterTask(
                    key=order.key,
                    examples=order.examples,
                    recipe=recipe,
                    seed=order.seed,
                    out=Path(folder) / str(i),
                    start=self._cache.fetch(order.start)[0] if order.start else None,
                    checkpoint=bench.checkpoint(order.key),
                    gradient=order.gradient,
                )
                for i, order in enumerate(orders)
                if order.key not in finished
            }
            for outcome in self._loop.train(source, [*tasks.values()], on_tick=lease.progress):
                if outcome.failure:
                    yield Made(key=outcome.key, failure=outcome.failure)
                    continue
                origin = Origin(
                    base_model=profile.model.source,
                    base_revision=profile.model.revision,
                    rank=recipe.rank,
                    job=lease.job,
                    epoch=lease.epoch,
                    seed=outcome.record.seed,
                )
                made = self._publish(outcome, tasks[outcome.key].out, origin)
                bench.finish(made)
                yield made

    def _publish(self, outcome: Outcome, folder: Path, origin: Origin) -> Made:
        manifest = publish(self._store, folder, origin)
        adapter = pb.TrainedAdapter(
            adapter=adapter_name(manifest.digest),
            size_bytes=manifest.size_bytes,
            training=training_to_proto(outcome.record),
        )
        return Made(key=outcome.key, adapter=adapter)

    def _load(self, source: ModelSource) -> BatchTrainer:
        try:
            return BatchTrainer(
                *load_model(source),
                slots=self._settings.adapters_at_once,
                memory_bytes=self._settings.training_memory_bytes,
                checkpoint_seconds=self._settings.checkpoint_seconds,
            )
        except NotTrainable as error:
            raise ModelNotLoadable(str(error), source=source.source) from error


class _Writer:
    """Writes in the background, as much at a time as memory is meant to hold."""

    MOST_BYTES = 256 << 20

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._bytes = 0
        self._lock = Lock()

    @property
    def ready(self) -> bool:
        return self._bytes < self.MOST_BYTES

    def write(self, key: str, data: bytes) -> Future[None]:
        self._count(len(data))
        return self._pool.submit(self._write, key, data)

    def _write(self, key: str, data: bytes) -> None:
        try:
            self._store.write(key, data)
            fault_point(Point.CHECKPOINTED)
        except Exception as error:  # training goes on without
            get_logger().warning("checkpoint not written", key=key, error=f"{type(error).__name__}: {error}")
        finally:
            self._count(-len(data))

    def _count(self, size: int) -> None:
        with self._lock:
            self._bytes += size


class _Bench:
    """What a job has so far, in the store."""

    def __init__(self, store: ObjectStore, job: str, writer: _Writer) -> None:
        self._store, self._writer = store, writer
        self._prefix = f"{UNFINISHED}{job}/"
        self._left = {*store.keys(self._prefix)}
        """What earlier attempts have left."""
        self._writing: dict[str, Future[None]] = {}

    def finished(self, key: str) -> Made | None:
        """The adapter that an earlier attempt stored."""
        stored = self._read(self._finished_key(key))
        return None if stored is None else Made(key=key, adapter=pb.TrainedAdapter.FromString(stored))

    def finish(self, made: Made) -> None:
        assert made.adapter is not None
        self._store.write(self._finished_key(made.key), made.adapter.SerializeToString())

    def checkpoint(self, key: str) -> _StoredCheckpoint:
        """The place of an adapter's checkpoint, with what is there already: the trainer does not wait for the store."""
        path = f"{self._prefix}{key}.safetensors"
        return _StoredCheckpoint(self, path, self._read(path))

    @property
    def ready(self) -> bool:
        return self._writer.ready

    def write(self, key: str, data: bytes) -> None:
        """Skipped while the last one of the same key is still under way."""
        last = self._writing.get(key)
        if last is None or last.done():
            self._writing[key] = self._writer.write(key, data)

    @contextmanager
    def left_in_order(self) -> Iterator[None]:
        """What is being written is in the store before the job is given back."""
        try:
            yield
        except Preempted:
            self.settle()
            raise

    def settle(self) -> None:
        """Wait for what is being written."""
        for writing in [*self._writing.values()]:
            writing.result()

    def clear(self) -> None:
        """Remove everything: the job has ended."""
        self.settle()
        for key in [*self._store.keys(self._prefix)]:
            self._store.remove(key)

    def _finished_key(self, key: str) -> str:
        return f"{self._prefix}{key}.finished"

    def _read(self, key: str) -> bytes | None:
        if key not in self._left:
            return None
        try:
            return self._store.read(key)
        except ObjectMissing:
            return None


class _StoredCheckpoint:
    """One adapter's checkpoint in the store."""

    def __init__(self, bench: _Bench, key: str, stored: bytes | None) -> None:
        self._bench, self._key, self._stored = bench, key, stored

    @property
    def ready(self) -> bool:
        return self._bench.ready

    def read(self) -> bytes | None:
        stored, self._stored = self._stored, None
        return stored

    def write(self, data: bytes) -> None:
        self._bench.write(self._key, data)
