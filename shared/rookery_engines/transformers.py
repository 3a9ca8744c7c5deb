"""The transformers engine: one model in this process, on CPU or GPU, with PEFT's adapters over it.

All work on the model is done by one thread, a batch at a time; a batch holds requests of one adapter.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from peft import PeftModel
from transformers import PreTrainedModel

from rookery_engines.decoding import Row, decode, mean_log_likelihoods
from rookery_engines.fitting import check_fits
from rookery_engines.models import ModelSource, load_model, pad_token, stop_tokens
from rookery_engines.types import (
    AdapterRef,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
    ModelIdentity,
)
from rookery_shared.errors import PromptTooLong

T = TypeVar("T")


class TransformersEngine:
    """One frozen base model and the adapters over it."""

    name = "transformers"

    def __init__(self, source: ModelSource, *, max_rows: int = 64, max_adapters: int = 8) -> None:
        """Load the model. `max_rows` texts go into one batch; `max_adapters` are kept in memory, the last ones used.

        Raises ModelNotLoadable.
        """
        self.identity = ModelIdentity(source=source.source, revision=source.revision)
        self._max_rows, self._max_adapters = max_rows, max_adapters
        self._model, self._tokenizer = load_model(source)
        self._adapted: PeftModel | None = None
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._pad = pad_token(self._tokenizer)
        self._stop = stop_tokens(self._model, self._tokenizer)

    def loaded(self) -> list[str]:
        return list(self._loaded)

    async def load(self, adapter: AdapterRef) -> None:
        await self._run(lambda: self._ensure(adapter))

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        loop, finished = asyncio.get_running_loop(), asyncio.Queue[Generation | None]()
        cancelled = threading.Event()

        def work() -> None:
            try:
                for generation in self._generate(requests):
                    loop.call_soon_threadsafe(finished.put_nowait, generation)
                    if cancelled.is_set():
                        return
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
        def work() -> list[float]:
            results = [0.0] * len(requests)
            for adapter, indices in _batches([r.adapter for r in requests], self._max_rows):
                texts = [
                    (self._encode(requests[i].prompt), self._encode_completion(requests[i].completion)) for i in indices
                ]
                with self._answering(adapter) as model:
                    scores = mean_log_likelihoods(model, texts, pad=self._pad)
                for i, score in zip(indices, scores, strict=True):
                    results[i] = score
            return results

        return await self._run(work)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text)
        return tokens

    def _encode_completion(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)  # a list only for a list of lists
        return text

    def _row(self, index: int, request: GenerationRequest) -> Row:
        """Raises PromptTooLong if the model's positions end before the text can begin."""
        prompt = self._encode(request.prompt)
        limit = self._model.config.max_position_embeddings
        if len(prompt) >= limit:
            raise PromptTooLong(f"the prompt has {len(prompt):,} tokens; {self.identity} reads at most {limit:,}")
        tokens = min(request.sampling.max_new_tokens, limit - len(prompt))
        return Row(
            index=index, prompt=prompt, sampling=replace(request.sampling, max_new_tokens=tokens), seed=request.seed
        )

    def _generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Generation]:
        for adapter, indices in _batches([r.adapter for r in requests], self._max_rows):
            rows = [self._row(i, requests[i]) for i in indices]
            with self._answering(adapter) as model:
                for row in decode(model, rows, pad=self._pad, stop=self._stop):
                    yield Generation(
                        request=row.index,
                        text=self._decode(row.tokens),
                        finish=Finish.STOP if row.stopped else Finish.LENGTH,
                        prompt_tokens=len(row.prompt),
                        completion_tokens=len(row.tokens),
                    )

    @contextmanager
    def _answering(self, adapter: AdapterRef | None) -> Iterator[PreTrainedModel]:
        """The model as it answers with this adapter, or as the base. PEFT's layers are inside the model itself."""
        if adapter is not None:
            self._ensure(adapter)
            assert self._adapted is not None
            self._adapted.set_adapter(adapter.name)
            yield self._model
        elif self._adapted is not None:
            with self._adapted.disable_adapter():
                yield self._model
        else:
            yield self._model

    def _ensure(self, adapter: AdapterRef) -> None:
        if adapter.name in self._loaded:
            self._loaded.move_to_end(adapter.name)
            return
        check_fits(self._model, adapter.folder, name=adapter.name)
        if self._adapted is not None and len(self._loaded) >= self._max_adapters:
            oldest, _ = self._loaded.popitem(last=False)
            self._adapted.delete_adapter(oldest)
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self._model, str(adapter.folder), adapter_name=adapter.name)
        else:
            self._adapted.load_adapter(str(adapter.folder), adapter_name=adapter.name)
        self._adapted.eval()
        self._loaded[adapter.name] = None


def _batches(adapters: Sequence[AdapterRef | None], size: int) -> Iterator[tuple[AdapterRef | None, list[int]]]:
    """Indices of requests with the same adapter, at most `size` together."""
    order = sorted(range(len(adapters)), key=lambda i: adapters[i].name if adapters[i] else "")  # type: ignore[union-attr]  # narrowed by the condition
    for _, group in groupby(order, key=lambda i: adapters[i]):
        indices = list(group)
        for first in range(0, len(indices), size):
            yield adapters[indices[first]], indices[first : first + size]
