"""The transformers engine: one model in this process, on CPU or GPU, with LoRA adapters over it.

All work on the model is done by one thread, a batch at a time; a batch holds requests of many adapters.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from rookery_engines.adapted import BASE, AdaptedModel
from rookery_engines.constraints import Constraints
from rookery_engines.decoding import Row, Text, decode, mean_log_likelihoods
from rookery_engines.models import ModelSource, load_model, pad_token, stop_tokens
from rookery_engines.texts import Texts
from rookery_engines.types import (
    AdapterRef,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
    ModelIdentity,
)

T = TypeVar("T")

ROWS_ON_CPU, ROWS_ON_GPU = 32, 256
"""Texts of a batch. On CPU a few are as many as stay in its caches: 32 were measured to be 1.5 times as fast as 512."""


class TransformersEngine:
    """One frozen base model and the adapters over it."""

    name = "transformers"

    def __init__(self, source: ModelSource, *, max_rows: int = 0, max_adapters: int = 64) -> None:
        """Load the model. `max_rows` texts go into one batch, 0 chooses; `max_adapters` are kept, the last ones used.

        Raises ModelNotLoadable.
        """
        self.identity = ModelIdentity(source=source.source, revision=source.revision)
        model, tokenizer = load_model(source)
        self._texts = Texts(tokenizer, self.identity, limit=model.config.max_position_embeddings, chat=source.chat)
        self._model = AdaptedModel(model, max_adapters=max_adapters)
        self._max_rows = max_rows or (ROWS_ON_GPU if model.device.type == "cuda" else ROWS_ON_CPU)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._pad = pad_token(tokenizer)
        self._stop = stop_tokens(model, tokenizer)
        self._constraints = Constraints(tokenizer, vocabulary=model.config.vocab_size, stop=sorted(self._stop))

    @property
    def max_adapters(self) -> int:
        return self._model.max_adapters

    def loaded(self) -> list[str]:
        return self._model.loaded

    def ask(self, text: str) -> str:
        return self._texts.ask(text)

    async def load(self, adapter: AdapterRef) -> None:
        await self._run(lambda: self._model.load([adapter]))

    async def watch(self) -> None:
        """For ever: the model lives and dies with this process."""
        await asyncio.Event().wait()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        loop, finished = asyncio.get_running_loop(), asyncio.Queue[Generation | None]()
        cancelled = threading.Event()

        def work() -> None:
            try:
                for generation in self._generate(requests, unwanted=cancelled.is_set):
                    loop.call_soon_threadsafe(finished.put_nowait, generation)
            finally:
                loop.call_soon_threadsafe(finished.put_nowait, None)

        task = asyncio.ensure_future(self._run(work))
        try:
            while (generation := await finished.get()) is not None:
                yield generation
            await task
        finally:
            cancelled.set()

    async def log_likelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        cancelled = threading.Event()

        def work() -> list[float]:
            results = [0.0] * len(requests)
            for indices in self._batches([r.adapter for r in requests]):
                if cancelled.is_set():
                    break
                asked = [requests[i] for i in indices]
                self._model.load(_named(asked))
                scores = mean_log_likelihoods(self._model, [self._text(request) for request in asked], pad=self._pad)
                for i, score in zip(indices, scores, strict=True):
                    results[i] = score
            return results

        try:
            return await self._run(work)
        finally:
            cancelled.set()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _row(self, index: int, request: GenerationRequest) -> Row:
        """Raises PromptTooLong if the model's positions end before the text can begin."""
        prompt, tokens = self._texts.prompt(request)
        return Row(
            index=index,
            prompt=prompt,
            sampling=replace(request.sampling, max_new_tokens=tokens),
            seed=request.seed,
            adapter=_name(request.adapter),
            held=self._constraints.hold_to(request.schema),
        )

    def _text(self, request: LikelihoodRequest) -> Text:
        prompt, completion = self._texts.pair(request)
        return Text(prompt=prompt, completion=completion, adapter=_name(request.adapter))

    def _generate(self, requests: Sequence[GenerationRequest], *, unwanted: Callable[[], bool]) -> Iterator[Generation]:
        """Until they are `unwanted`, which is looked at before every token."""
        for indices in self._batches([r.adapter for r in requests]):
            if unwanted():
                return
            rows = [self._row(i, requests[i]) for i in indices]
            self._model.load(_named([requests[i] for i in indices]))
            for row in decode(self._model, rows, pad=self._pad, stop=self._stop, unwanted=unwanted):
                yield Generation(
                    request=row.index,
                    text=self._texts.text(row.tokens),
                    finish=Finish.STOP if row.stopped else Finish.LENGTH,
                    prompt_tokens=len(row.prompt),
                    completion_tokens=len(row.tokens),
                )

    def _batches(self, adapters: Sequence[AdapterRef | None]) -> Iterator[list[int]]:
        """Indices of requests that share a batch: those of one adapter together, no more adapters than are kept."""
        batch: list[int] = []
        kept: set[str] = set()
        for i in sorted(range(len(adapters)), key=lambda i: _name(adapters[i])):
            kept |= {_name(adapters[i])} - {BASE}
            if len(batch) == self._max_rows or len(kept) > self.max_adapters:
                yield batch
                batch, kept = [], {_name(adapters[i])} - {BASE}
            batch.append(i)
        if batch:
            yield batch


def _named(requests: Sequence[GenerationRequest | LikelihoodRequest]) -> list[AdapterRef]:
    """Their adapters, each once."""
    return [*{request.adapter.name: request.adapter for request in requests if request.adapter is not None}.values()]


def _name(adapter: AdapterRef | None) -> str:
    return BASE if adapter is None else adapter.name
