"""Trains the adapters of a job and puts them into the store. Shared by the student and the teacher's trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rookery.internal.v1 import job_service_pb2 as pb
from rookery.v1 import model_service_pb2
from rookery_engines.models import ModelSource, load_model
from rookery_shared.errors import NothingToLearn
from rookery_shared.settings import StoreSettings
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.connect import connect_store
from rookery_shared.types import Example, LoraRecipe
from rookery_training.lora import LoraTrainer


class Workshop:
    """One base model at a time, loaded when a job first needs it."""

    def __init__(self, settings: StoreSettings, *, torch_threads: int) -> None:
        if torch_threads:
            torch.set_num_threads(torch_threads)
        self._store = connect_store(settings)
        self._cache = AdapterCache(self._store, settings.cache_folder)
        self._source: ModelSource | None = None
        self._trainer: LoraTrainer | None = None

    def make(
        self,
        profile: model_service_pb2.Profile,
        examples: Sequence[Example],
        recipe: LoraRecipe,
        *,
        seed: int,
        job: str,
        epoch: int,
        start: str = "",
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> pb.TrainedAdapter:
        """Train one adapter of the profile's model, going on from the adapter `start` if given, and publish it.

        Raises NothingToLearn, ModelNotLoadable, and what `on_step` raises.
        """
        trainer = self._trainer_for(profile)
        origin = Origin(
            base_model=profile.model.source,
            base_revision=profile.model.revision,
            rank=recipe.rank,
            job=job,
            epoch=epoch,
            seed=seed,
        )
        begin = self._cache.fetch(start)[0] if start else None
        with tempfile.TemporaryDirectory(prefix="rookery-train-") as folder:
            try:
                record = trainer.train(examples, recipe, seed=seed, out=Path(folder), start=begin, on_step=on_step)
            except ValueError as error:
                raise NothingToLearn(str(error)) from error
            manifest = publish(self._store, Path(folder), origin)
        return pb.TrainedAdapter(
            adapter=adapter_name(manifest.digest),
            size_bytes=manifest.size_bytes,
            losses=record.losses,
            tokens=record.tokens,
            seconds=record.seconds,
            weight_change=record.weight_change,
            truncated=record.truncated,
        )

    def _trainer_for(self, profile: model_service_pb2.Profile) -> LoraTrainer:
        source = ModelSource(source=profile.model.source, revision=profile.model.revision, dtype=profile.dtype)
        if self._trainer is None or source != self._source:
            self._trainer = None  # let go of the old model before the new one is loaded
            self._trainer = LoraTrainer(*load_model(source))
            self._source = source
        return self._trainer
