"""Waiting for what another thread or process is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], object], *, seconds: float = 40.0, what: str | Callable[[], str], every: float = 0.02
) -> None:
    """Raises AssertionError if it does not hold within that time. `what` tells what should have, and how things are."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(every)
