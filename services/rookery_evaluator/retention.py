"""What adapters have forgotten: how much less likely they find texts that have nothing to do with what they learned."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cachetools import LRUCache

from rookery_engines.base import Engine
from rookery_engines.types import AdapterRef, LikelihoodRequest

BASE_TEXTS = 10_000
"""Texts of which it is remembered how likely the base finds them."""


class Retention:
    """One student model. Its base is asked about a text once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._base: LRUCache[str, float] = LRUCache(BASE_TEXTS)

    async def forgetting(self, adapters: Sequence[AdapterRef], texts: Sequence[str]) -> list[float]:
        """For each adapter what the texts lose in mean log-likelihood, in nats per token; the mean over texts.

        Negative if they become more likely.
        """
        base = {text: self._base.get(text) for text in texts}
        unknown = [text for text, value in base.items() if value is None]
        asked = [(text, None) for text in unknown] + [(text, ref) for ref in adapters for text in texts]
        # The first token needs something before it.
        requests = [LikelihoodRequest(prompt="\n", completion=text, adapter=ref) for text, ref in asked]
        values = await self._engine.log_likelihoods(requests)
        known = {text: value for text, value in base.items() if value is not None}
        known |= zip(unknown, values, strict=False)
        self._base.update(known)
        before, with_adapters = [known[text] for text in texts], values[len(unknown) :]
        return [
            statistics.fmean(b - a for b, a in zip(before, with_adapters[i:], strict=False))
            for i in range(0, len(with_adapters), len(texts))
        ]
