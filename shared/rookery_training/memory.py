"""How much memory a pass needs, measured on the device when training starts.

    peak = base model + adapters x bytes of an adapter + workspace + tokens of a pass x bytes of a token

The last two are measured with two passes over made-up tokens, in sequences of 64 and without dropout; the rest is
arithmetic. Longer sequences and dropout take somewhat more, which the margins below are for.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rookery_shared.types import ALL_LINEAR
from rookery_training.bank import Bank, Layout
from rookery_training.base import FrozenBase
from rookery_training.loss import chunk_tokens
from rookery_training.packing import Piece
from rookery_training.passes import Passes
from rookery_training.sequences import Tokens

SEQUENCE = 64
LEAST, MOST = 128, 2048
"""Tokens of the shorter measured pass: as many as fill the output head's chunk, within these bounds."""
SHARE_OF_GPU = 0.9
SHARE_OF_HOST = 0.5
"""Other processes use the host's memory too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """All in bytes."""

    base: int
    """Weights of the base model."""
    workspace: int
    """What a pass needs whatever its size."""
    per_token: float
    """Activations, kept and passing."""

    def peak(self, *, state: int, tokens: int) -> int:
        """With so many bytes of adapters and so many tokens in a pass."""
        return self.base + state + self.workspace + round(tokens * self.per_token)

    def tokens(self, budget: int) -> int:
        """Tokens of a pass for which `budget` is enough, beside the base and the adapters; at least 1."""
        return max(1, int((budget - self.workspace) / self.per_token))


def give_back_freed_memory() -> None:
    """What the process has freed, to the operating system. The C library would keep it, in pieces that fit nothing."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has other habits
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measure(base: FrozenBase) -> MemoryModel:
    """Two passes with adapters on every layer: more than most recipes ask for."""
    layout = Layout.of(base.linear, {ALL_LINEAR}, rank=8)
    bank = Bank(layout, slots=1, device=base.device, dtype=base.precision)
    passes = Passes(base)
    short = -(-min(max(LEAST, chunk_tokens(base.head_VD)), MOST) // (SEQUENCE - 1)) * SEQUENCE
    with passes.on(layout):
        peaks = [_peak(passes, bank, tokens, base) for tokens in (short, 2 * short)]
    per_token = max(1.0, (peaks[1] - peaks[0]) / short)
    workspace = max(0, round(peaks[0] - per_token * short))
    return MemoryModel(base=base.weight_bytes, workspace=workspace, per_token=per_token)


def _peak(passes: Passes, bank: Bank, tokens: int, base: FrozenBase) -> int:
    words = [1 + i % (len(base.head_VD) - 1) for i in range(SEQUENCE)]
    sequences = [Tokens(words, 1, counted=SEQUENCE - 1)] * (tokens // SEQUENCE)
    piece = Piece(slot=0, sequences=sequences, before=0, counted=1.0, scale=1.0, dropout=0.0, seed=0, draw=0)
    with allocation_peak(base.device) as peak:
        passes.run(bank, [piece])
    return peak[0]


@contextmanager
def allocation_peak(device: torch.device) -> Iterator[list[int]]:
    """The most bytes of tensors allocated within, above what there was before. In the list when it is over."""
    result = [0]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield result
        result[0] = torch.cuda.max_memory_allocated(device) - before
    else:
        with _LiveStorages() as live:
            yield result
        result[0] = live.peak


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of tensors that operations return and nobody has let go of; CPU has no such statistics."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._bytes = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {id(x.untyped_storage()) for x in args if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        if id(storage) in given or storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._bytes += size
        self.peak = max(self.peak, self._bytes)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._bytes -= size


def free_memory(device: torch.device) -> int:
    """Bytes that training may take on a device, beside what is taken now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * SHARE_OF_GPU)
    available = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - psutil.Process().memory_info().rss)
    return max(0, int(available * SHARE_OF_HOST))


def used_peak(device: torch.device) -> int:
    """The most bytes that the device, or this process on CPU, has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not have the memory that it asked for; on CPU it has no type of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
