"""A CPU's cores, shared by works that go on side by side: a core that works on its own waits for nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

SIDE_BY_SIDE = 2
"""Works at the same time."""

T = TypeVar("T")


class Cores:
    """The cores of one thread."""

    def __init__(self) -> None:
        self._others = ThreadPoolExecutor(SIDE_BY_SIDE - 1, thread_name_prefix="core")

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What the works return, at most `SIDE_BY_SIDE` of them, each done on its share of the cores.

        All have ended when this returns or raises.
        """
        if len(works) == 1:
            return [works[0]()]
        cores = torch.get_num_threads()
        own, *others = works
        running = [self._others.submit(_on, cores // len(works), work) for work in others]
        try:
            first = _on(cores // len(works), own)
        finally:
            wait(running)
            torch.set_num_threads(cores)
        return [first, *(future.result() for future in running)]

    def close(self) -> None:
        self._others.shutdown()


def _on(cores: int, work: Callable[[], T]) -> T:
    torch.set_num_threads(cores)  # of this thread
    return work()


def most_side_by_side(device: torch.device) -> int:
    """How many works are worth it on a device: one on a GPU, and no more than there are cores for this thread."""
    return min(SIDE_BY_SIDE, torch.get_num_threads()) if device.type == "cpu" else 1
