"""The transformers engine: one model in this process, on CPU or GPU, with LoRA adapters over it.

All work on the model is given to it by one thread, a call after the other. A call's requests go in batches, which hold
requests of many adapters; on a CPU two batches go side by side.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from typing import TypeVar

from rookery_engines.adapted import BASE, AdaptedModel
from rookery_engines.constraints import Constraints
from rookery_engines.decoding import Row, Text, decode, mean_log_likelihoods
from rookery_engines.drafts import Drafts
from rookery_engines.models import ModelSource, load_model, pad_token, stop_tokens
from rookery_engines.texts import Texts
from rookery_engines.types import (
    AdapterRef,
    Answer,
    AnswerRequest,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
    ModelIdentity,
)
from rookery_shared.types import Sampling
from rookery_training.cores import Cores, most_side_by_side

T = TypeVar("T")
Request = GenerationRequest | LikelihoodRequest | AnswerRequest

ROWS_ON_CPU, ROWS_ON_GPU = 64, 256
"""Texts of a batch. On CPU a few are as many as stay in its caches: 32 were measured to be 1.5 times as fast as 512."""
FEW_ROWS = 32
"""More are shared out to all cores."""


class TransformersEngine:
    """One frozen base model and the adapters over it."""

    name = "transformers"

    def __init__(self, source: ModelSource, *, max_rows: int = 0, max_adapters: int = 64) -> None:
        """Load the model. `max_rows` texts go into one batch, 0 chooses; `max_adapters` are kept, the last ones used.

        Raises ModelNotLoadable.
        """
        self.identity = ModelIdentity(source=source.source, revision=source.revision)
        self.rounding = source.rounding
        model, tokenizer = load_model(source)
        self._texts = Texts(tokenizer, self.identity, limit=model.config.max_position_embeddings, chat=source.chat)
        self._model = AdaptedModel(model, max_adapters=max_adapters)
        self._max_rows = max_rows or (ROWS_ON_GPU if model.device.type == "cuda" else ROWS_ON_CPU)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._cores = Cores()
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
        self._cores.close()

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        loop, finished = asyncio.get_running_loop(), asyncio.Queue[Generation | None]()
        cancelled = threading.Event()

        def work() -> None:
            try:
                self._generate(
                    requests,
                    deliver=lambda generation: loop.call_soon_threadsafe(finished.put_nowait, generation),
                    unwanted=cancelled.is_set,
                )
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
        return await self._wanted(lambda unwanted: self._log_likelihoods(requests, unwanted=unwanted))

    async def answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
        return await self._wanted(lambda unwanted: self._answer(requests, unwanted=unwanted))

    async def _wanted(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """What the work returns; it can find out whether nobody waits for it any more."""
        cancelled = threading.Event()
        try:
            return await self._run(lambda: work(cancelled.is_set))
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

    def _log_likelihoods(self, requests: Sequence[LikelihoodRequest], *, unwanted: Callable[[], bool]) -> list[float]:
        """0 for what is unwanted."""
        results = [0.0] * len(requests)
        texts = [self._text(request) for request in requests]

        def work(batches: Sequence[list[int]]) -> None:
            for indices in batches:
                if unwanted():
                    return
                self._model.load(_named([requests[i] for i in indices]))
                scores = mean_log_likelihoods(self._model, [texts[i] for i in indices], pad=self._pad)
                for i, score in zip(indices, scores, strict=True):
                    results[i] = score

        self._side_by_side(requests, work)
        return results

    def _answer(self, requests: Sequence[AnswerRequest], *, unwanted: Callable[[], bool]) -> list[Answer]:
        """Without an end or a likelihood for what is unwanted."""
        encoded = cache(self._texts.answer)  # the base is asked the same
        drafted = [self._draft(i, request, encoded) for i, request in enumerate(requests)]
        scores = [math.nan] * len(requests)

        def work(batches: Sequence[list[int]]) -> None:
            drafts = Drafts(self._model, pad=self._pad, stop=self._stop, unwanted=unwanted)
            for indices in batches:
                if unwanted():
                    break
                adapters = _named([requests[i] for i in indices])
                if len(drafts.adapters | {adapter.name for adapter in adapters}) > self.max_adapters:
                    drafts.finish()
                self._model.load(adapters)
                read = drafts.read(*zip(*(drafted[i] for i in indices), strict=True))
                for i, score in zip(indices, read, strict=True):
                    scores[i] = score
            drafts.finish()

        self._side_by_side(requests, work)
        return [
            Answer(text=self._texts.text(row.tokens), log_likelihood=score)
            for (row, _), score in zip(drafted, scores, strict=True)
        ]

    def _side_by_side(self, requests: Sequence[Request], work: Callable[[Sequence[list[int]]], None]) -> None:
        """The requests' batches, worked off on all cores.

        Cores that share a small product wait for each other more than they gain, so each has batches of its own. If not
        all adapters are kept at once, one batch after the other decides which are.
        """
        cores = most_side_by_side(self._model.device)
        batches = [*self._batches(requests, min(self._max_rows, max(FEW_ROWS, math.ceil(len(requests) / cores))))]
        adapters = _named(requests)
        count = min(cores, len(batches))
        if count > 1 and len(adapters) <= self.max_adapters:
            self._model.load(adapters)
            self._cores.run([partial(work, batches[place::count]) for place in range(count)])
        else:
            work(batches)

    def _draft(
        self, index: int, request: AnswerRequest, encode: Callable[[str, str, int], tuple[list[int], list[int], int]]
    ) -> tuple[Row, list[int]]:
        """And the gold answer. Raises PromptTooLong."""
        prompt, gold, tokens = encode(request.prompt, request.gold, request.max_new_tokens)
        sampling = Sampling(temperature=0.0, max_new_tokens=tokens)
        return Row(index=index, prompt=prompt, sampling=sampling, seed=0, adapter=_name(request.adapter)), gold

    def _generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        deliver: Callable[[Generation], object],
        unwanted: Callable[[], bool],
    ) -> None:
        """Until they are `unwanted`, which is looked at before every token."""
        rows = [self._row(i, request) for i, request in enumerate(requests)]

        def work(batches: Sequence[list[int]]) -> None:
            for indices in batches:
                if unwanted():
                    return
                self._model.load(_named([requests[i] for i in indices]))
                batch = [rows[i] for i in indices]
                for row in decode(self._model, batch, pad=self._pad, stop=self._stop, unwanted=unwanted):
                    deliver(
                        Generation(
                            request=row.index,
                            text=self._texts.text(row.tokens),
                            finish=Finish.STOP if row.stopped else Finish.LENGTH,
                            prompt_tokens=len(row.prompt),
                            completion_tokens=len(row.tokens),
                        )
                    )

        self._side_by_side(requests, work)

    def _batches(self, requests: Sequence[Request], rows: int) -> Iterator[list[int]]:
        """Indices of requests that share a batch of so many: those of one adapter together, no more than are kept.

        Prompts that begin alike are neighbours, and an adapter's requests are in one batch if one has room for them.
        """
        order = sorted(range(len(requests)), key=lambda i: (_name(requests[i].adapter), requests[i].prompt))
        batch: list[int] = []
        kept: set[str] = set()
        for name, members in groupby(order, key=lambda i: _name(requests[i].adapter)):
            own = [*members]
            fits = len(batch) + len(own) <= rows or len(own) > rows
            if batch and (not fits or len(kept | {name} - {BASE}) > self.max_adapters):
                yield batch
                batch, kept = [], set()
            kept |= {name} - {BASE}
            for i in own:
                if len(batch) == rows:
                    yield batch
                    batch, kept = [], {name} - {BASE}
                batch.append(i)
        if batch:
            yield batch


def _named(requests: Sequence[Request]) -> list[AdapterRef]:
    """Their adapters, each once."""
    return [*{request.adapter.name: request.adapter for request in requests if request.adapter is not None}.values()]


def _name(adapter: AdapterRef | None) -> str:
    return BASE if adapter is None else adapter.name
