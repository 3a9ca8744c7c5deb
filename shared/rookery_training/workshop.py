"""Trains the adapters of a job and puts them into the store. Shared by the student and the teacher's trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.v1 import model_service_pb2
from rookery_engines.models import ModelSource, load_model
from rookery_shared.errors import ModelNotLoadable, TrainingFailed
from rookery_shared.settings import StoreSettings
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.connect import connect_store
from rookery_shared.types import Example, LoraRecipe
from rookery_training.base import NotTrainable
from rookery_training.batch import AdapterTask, BatchTrainer, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An adapter that a job asks for."""

    key: str
    examples: Sequence[Example]
    seed: int
    start: str = ""
    """Name of an adapter to go on from."""


class Workshop:
    """One base model at a time, loaded when a job first needs it."""

    def __init__(self, settings: StoreSettings, *, torch_threads: int) -> None:
        if torch_threads:
            torch.set_num_threads(torch_threads)
        self._store = connect_store(settings)
        self._cache = AdapterCache(self._store, settings.cache_folder)
        self._source: ModelSource | None = None
        self._trainer: BatchTrainer | None = None

    def make(
        self,
        profile: model_service_pb2.Profile,
        orders: Sequence[Order],
        recipe: LoraRecipe,
        *,
        job: str,
        epoch: int,
        on_tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[tuple[str, pb.TrainedAdapter]]:
        """Train adapters of the profile's model together; each, with its key, as soon as it is published.

        Raises TrainingFailed, ModelNotLoadable, and what `on_tick` raises.
        """
        trainer = self._trainer_for(profile)
        seeds = {order.key: order.seed for order in orders}
        with tempfile.TemporaryDirectory(prefix="rookery-train-") as folder:
            tasks = [
                AdapterTask(
                    key=order.key,
                    examples=order.examples,
                    recipe=recipe,
                    seed=order.seed,
                    out=Path(folder) / str(i),
                    start=self._cache.fetch(order.start)[0] if order.start else None,
                )
                for i, order in enumerate(orders)
            ]
            folders = {task.key: task.out for task in tasks}
            for outcome in trainer.train(tasks, on_tick=on_tick):
                if outcome.failure:
                    raise TrainingFailed(outcome.failure)
                origin = Origin(
                    base_model=profile.model.source,
                    base_revision=profile.model.revision,
                    rank=recipe.rank,
                    job=job,
                    epoch=epoch,
                    seed=seeds[outcome.key],
                )
                manifest = publish(self._store, folders[outcome.key], origin)
                yield outcome.key, _to_proto(adapter_name(manifest.digest), manifest.size_bytes, outcome)

    def _trainer_for(self, profile: model_service_pb2.Profile) -> BatchTrainer:
        source = ModelSource(source=profile.model.source, revision=profile.model.revision, dtype=profile.dtype)
        if self._trainer is None or source != self._source:
            self._trainer = None  # let go of the old model before the new one is loaded
            try:
                self._trainer = BatchTrainer(*load_model(source))
            except NotTrainable as error:
                raise ModelNotLoadable(str(error), source=source.source) from error
            self._source = source
        return self._trainer


def _to_proto(name: str, size_bytes: int, outcome: Outcome) -> pb.TrainedAdapter:
    record = outcome.record
    return pb.TrainedAdapter(
        adapter=name,
        size_bytes=size_bytes,
        losses=record.losses,
        tokens=record.tokens,
        seconds=record.seconds,
        weight_change=record.weight_change,
        truncated=record.truncated,
    )
