"""How long the call that is being answered may still take: what it calls in turn has no longer.

A server sets this for each call. Tasks and `asyncio.to_thread` inherit it; a thread of one's own knows of no deadline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END: ContextVar[float] = ContextVar("end of the call", default=math.inf)
"""Of the monotonic clock, in seconds."""


@contextmanager
def ends_in(seconds: float) -> Iterator[None]:
    """What is called in the block ends with it."""
    token = _END.set(min(time.monotonic() + seconds, _END.get()))
    try:
        yield
    finally:
        _END.reset(token)


def remaining(seconds: float) -> float:
    """`seconds`, or less if the call that is being answered has no more left. Never below 0."""
    return max(0.0, min(seconds, _END.get() - time.monotonic()))
