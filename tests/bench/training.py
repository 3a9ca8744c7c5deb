"""Adapters an hour, tokens a second, memory, and the share of the device's matrix products: ours beside PEFT's.

    python -m tests.bench.training --out tests/bench/results/training-cpu.json
    python -m tests.bench.training --device cuda --dtypes bfloat16 --shapes 0.5b 1.5b 7b --out ...

One run, one result file. Contenders train the same model and take turns, so that a machine that slows down slows all of
them. Each trains as many of the same adapters as it takes at once, and at least four; adapters an hour are those of
mean length, and ratios of them the medians of the turns' own. `tests.bench.plot` makes a table and a plot of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.profiler import profile
from transformers import PreTrainedTokenizerBase

from rookery_training.bank import Bank, Layout
from rookery_training.base import FrozenBase
from rookery_training.batch import AdapterTask
from rookery_training.sequences import micro_batches, tokenize
from tests.bench.contenders import Contender, Ours, PaddedSequential, Sequential
from tests.bench.shapes import (
    SEAL,
    SEQUENCES,
    SHAPES,
    TOKENS,
    load_tokenizer,
    make_model,
    make_tasks,
    multiplied_weights,
)

PADDED, SEQUENTIAL, ONE_THREAD, OURS = "padded-sequential", "sequential", "sequential, 1 thread", "ours, N="
LEAST = 4
"""Adapters of a turn, at least."""
PADDED_EPOCHS = 2
"""It is so slow that a fifth of an adapter must do; its adapters an hour are those of whole ones."""
SWEEP_EPOCHS = 2
"""Where lengths and sizes are compared."""
LENGTHS = (55, 220, 880)
KINDS = {
    "products of the base": ("aten::mm", "aten::addmm"),
    "products of adapters and attention": ("aten::bmm", "aten::baddbmm", "aten::_grouped_mm"),
    "fused attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "aten::_flash_attention_forward",
        "aten::_flash_attention_backward",
    ),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data", "aten::_log_softmax", "aten::exp_"),
    "gathers and copies": ("aten::copy_", "aten::index_select", "aten::cat", "aten::fill_", "aten::index_add_"),
    "optimiser": ("aten::_fused_adamw_", "aten::linalg_vector_norm"),
}


def ours(slots: int) -> str:
    return f"{OURS}{slots}"


class Bench:
    """One device."""

    def __init__(self, device: str, turns: int, folder: Path) -> None:
        self.device, self.turns, self.folder = device, turns, folder
        self.tokenizer = load_tokenizer()

    def compare(
        self,
        shape: str,
        dtype: torch.dtype,
        sizes: Sequence[int],
        *,
        tokens: int = TOKENS,
        epochs: int = SEAL.epochs,
        padded: bool = False,
    ) -> dict[str, Any]:
        """All contenders on one model and one length."""
        model = make_model(shape, self.tokenizer, dtype, self.device)
        entered: dict[str, tuple[Contender, int]] = {SEQUENTIAL: (Sequential(model, self.tokenizer), LEAST)}
        if self.device == "cpu" and torch.get_num_threads() > 1:
            entered[ONE_THREAD] = (Sequential(model, self.tokenizer, threads=1), LEAST)
        entered |= {ours(n): (Ours(model, self.tokenizer, n), max(n, LEAST)) for n in sizes}
        tasks = make_tasks(max(LEAST, *sizes), self.tokenizer, self.folder, tokens=tokens, epochs=epochs)
        mean = sum(_tokens(task, self.tokenizer) for task in tasks) / len(tasks) * SEAL.epochs
        rates: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        losses: dict[str, float] = {}
        for contender, _ in entered.values():  # warm up
            contender.train(make_tasks(LEAST, self.tokenizer, self.folder, tokens=tokens, epochs=1))
        turns = {name: (contender, tasks[:count]) for name, (contender, count) in entered.items()}
        if padded:
            short = make_tasks(1, self.tokenizer, self.folder, tokens=tokens, epochs=PADDED_EPOCHS)
            turns[PADDED] = (PaddedSequential(model, self.tokenizer), short)
        for _ in range(self.turns):
            for name, (contender, trained) in turns.items():
                seconds, seen, losses[name] = self._turn(contender, trained)
                rates[name].append((seen / mean / seconds * 3600, seen / seconds))
        best = max((name for name in rates if name.startswith(SEQUENTIAL)), key=lambda n: _median(rates[n], 0))
        peak, work = matmul_peak(dtype, self.device), 4 * multiplied_weights(model)
        return {
            "shape": shape,
            "weights": sum(p.numel() for p in model.parameters()),
            "dtype": str(dtype).removeprefix("torch."),
            "tokens_per_sequence": tokens,
            "matmul_peak_tflops": round(peak / 1e12, 3),
            "compared_with": best,
            "contenders": {
                name: {
                    "adapters_per_hour": round(_median(values, 0)),
                    "real_tokens_per_second": round(_median(values, 1)),
                    "ratio": round(_ratio(values, rates[best]), 2),
                    "ratios": [round(a / b, 2) for (a, _), (b, _) in zip(values, rates[best], strict=True)],
                    **({"ratio_to_padded": round(_ratio(values, rates[PADDED]), 1)} if padded else {}),
                    "share_of_matmul_peak": round(_median(values, 1) * work / peak, 3),
                    "last_loss": round(losses[name], 4),
                }
                for name, values in rates.items()
            },
        }

    def _turn(self, contender: Contender, tasks: Sequence[Any]) -> tuple[float, int, float]:
        started = time.perf_counter()
        seen, loss = contender.train(tasks)
        return time.perf_counter() - started, seen, loss

    def profile(self, shape: str, dtype: torch.dtype, slots: int) -> dict[str, float]:
        """Shares of the time of ours, by what the operations do; of two threads, those of the one that leads."""
        contender = Ours(make_model(shape, self.tokenizer, dtype, self.device), self.tokenizer, slots)
        tasks = make_tasks(slots, self.tokenizer, self.folder, epochs=2)
        contender.train(tasks)
        started = time.perf_counter()
        with profile() as profiled:
            contender.train(tasks)
        seconds = time.perf_counter() - started
        events = profiled.key_averages()
        name = "self_cpu_time_total" if self.device == "cpu" else "self_device_time_total"
        spent = {event.key: getattr(event, name) / 1e6 for event in events}
        kinds = {kind: sum(spent.get(key, 0.0) for key in keys) for kind, keys in KINDS.items()}
        if self.device == "cpu":  # where grouped products are a loop of plain ones
            inner = sum(
                (e.cpu_time_total - e.self_cpu_time_total) / 1e6 for e in events if e.key == "aten::_grouped_mm"
            )
            kinds["products of the base"] -= inner
            kinds["products of adapters and attention"] += inner
        operations = sum(seconds for key, seconds in spent.items() if key.startswith("aten::"))
        kinds["elementwise and the rest of torch"] = operations - sum(kinds.values())
        kinds["Python, autograd, files, waiting"] = max(0.0, seconds - operations)
        return {kind: round(value / max(seconds, operations), 3) for kind, value in kinds.items()}


def _tokens(task: AdapterTask, tokenizer: PreTrainedTokenizerBase) -> int:
    """Of one epoch."""
    return sum(len(tokenizer.encode(example.completion)) for example in task.examples)


def _median(values: Sequence[tuple[float, float]], place: int) -> float:
    return statistics.median(value[place] for value in values)


def _ratio(values: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> float:
    return statistics.median(a / b for (a, _), (b, _) in zip(values, others, strict=True))


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """Most FLOP a second of a large square product."""
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


# --- memory --------------------------------------------------------------------------------------------------------


def memory_table(shape: str, dtype: torch.dtype, device: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Predicted and measured peak, each in a process of its own: what the device or the process takes in addition."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # so that what is let go of is given back at once
    rows = []
    for slots in sizes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(_memory, shape, dtype, device, slots).result())
    return rows


def _memory(shape: str, dtype: torch.dtype, device: str, slots: int) -> dict[str, Any]:
    tokenizer = load_tokenizer()
    model = make_model(shape, tokenizer, dtype, device)
    with tempfile.TemporaryDirectory() as folder:
        contender = Ours(model, tokenizer, slots)
        predicted = contender.trainer.memory
        base = FrozenBase(model, tokenizer)
        Sequential(model, tokenizer).train(make_tasks(1, tokenizer, Path(folder), epochs=1))  # loads all code
        tasks = make_tasks(slots, tokenizer, Path(folder), epochs=1)
        longest = _longest_tick(tasks, tokenizer)
        before = _held(device)
        contender.train(tasks)
        measured = _peak(device) - before
    layout = Layout.of(base.linear, {*SEAL.targets}, SEAL.rank)
    state = slots * Bank.bytes_of_slot(layout, base.precision, base.dtype)
    tokens = min(longest, contender.trainer.tokens_per_pass)
    expected = predicted.peak(state=state, tokens=tokens) - predicted.base
    return {
        "adapters": slots,
        "shape": shape,
        "base_mib": _mib(predicted.base),
        "adapters_mib": _mib(state),
        "pass_mib": _mib(expected - state),
        "predicted_mib": _mib(expected),
        "measured_mib": _mib(measured),
    }


def _longest_tick(tasks: Sequence[AdapterTask], tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens of all adapters' micro-batches at one time; here all have the same number of them."""
    sequences = [tokenize(task.examples, tokenizer, task.recipe)[0] for task in tasks]
    ticks = zip(
        *(micro_batches(own, task.recipe, seed=task.seed) for own, task in zip(sequences, tasks, strict=True)),
        strict=True,
    )
    return max(sum(len(s.tokens) for batch in batches for s in batch.sequences) for batches in ticks)


def _held(device: str) -> int:
    """Bytes now; the peak starts again from here."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return _status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status(field: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _mib(size: float) -> float:
    return round(size / 2**20, 1)


# --- the program ---------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device != "cpu" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument(
        "--shapes", nargs="+", default=["tiny", "4m", "10m"], choices=SHAPES, help="the first with all contenders"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    first, *others = arguments.shapes
    result: dict[str, Any] = {
        "machine": machine(arguments.device),
        "data": f"{SEQUENCES} sequences of about {TOKENS} tokens, {SEAL.epochs} epochs, batch size {SEAL.batch_size}, "
        f"rank {SEAL.rank} on {', '.join(SEAL.targets)}",
        "turns": arguments.turns,
        "epochs_of_padded": PADDED_EPOCHS,
        "epochs_of_lengths_and_sizes": SWEEP_EPOCHS,
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.device, arguments.turns, Path(folder))
        one = Bench(arguments.device, 1, Path(folder))

        def add(part: str, row: object) -> None:
            result.setdefault(part, []).append(row)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")
            print(part, json.dumps(row), flush=True)

        for dtype in dtypes:
            add("contenders", bench.compare(first, dtype, arguments.sizes, padded=True))
        for shape in others:
            add("sizes", one.compare(shape, dtypes[-1], [32], epochs=SWEEP_EPOCHS, padded=arguments.device != "cpu"))
        for tokens in LENGTHS[1:]:
            add("lengths", one.compare(first, dtypes[-1], [32], tokens=tokens, epochs=SWEEP_EPOCHS))
        for dtype in dtypes:
            shares = bench.profile(first, dtype, 32)
            add("profile", {"dtype": str(dtype).removeprefix("torch."), "adapters": 32, "shares": shares})
    for row in memory_table(
        "10m" if arguments.device == "cpu" else first, dtypes[0], arguments.device, arguments.sizes
    ):
        add("memory", row)


if __name__ == "__main__":
    main()
