"""Whether an engine answers with the adapters that it is asked for, found out before anything depends on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rookery_engines.base import Engine
from rookery_engines.fitting import largest_change
from rookery_engines.types import AdapterRef, LikelihoodRequest
from rookery_shared.errors import AdapterIgnored

AT_ONCE = 7
"""Adapters of one call."""
NOISE = 1e-6
"""How much two texts of a batch may differ by where they stand in it, relatively."""

UNSEEN = 1e-4
"""Changes of weights that may leave a text as likely as it was, as a few steps at a rate of 1e-6 do."""


async def probe(engine: Engine, adapters: Sequence[AdapterRef], text: str) -> None:
    """Load adapters, and see for each that a text is not exactly as likely as without it.

    The same text in the same batch: what differs there differs by the adapter alone. Raises AdapterMismatch for one
    that cannot be loaded, AdapterIgnored for one that has no effect though its weights are not next to zero.
    """
    for first in range(0, len(adapters), AT_ONCE):
        some = adapters[first : first + AT_ONCE]
        for adapter in some:
            await engine.load(adapter)
        requests = [LikelihoodRequest(prompt="\n", completion=text, adapter=adapter) for adapter in (None, *some)]
        base, *values = await engine.log_likelihoods(requests)
        for adapter, value in zip(some, values, strict=True):
            if math.isclose(value, base, rel_tol=NOISE) and largest_change(adapter.folder) > UNSEEN:
                message = f"the engine answers the same with {adapter.name} as without it"
                raise AdapterIgnored(message, adapter=adapter.name)
