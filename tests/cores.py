"""Work that goes on side by side, as on a machine with two cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def on_two_cores(monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> Iterator[list[threading.Thread]]:
    """The threads in which the method is called, listed as it is. Checks that the cores are given back."""
    seen: list[threading.Thread] = []
    run = getattr(owner, method)

    def listed(*arguments: Any, **named: Any) -> Any:
        seen.append(threading.current_thread())
        return run(*arguments, **named)

    monkeypatch.setattr(owner, method, listed)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield seen
    assert torch.get_num_threads() == 2, "as it was before"
    torch.set_num_threads(before)
