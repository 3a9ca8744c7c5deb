"""An hour of random jobs in one training process: does its memory stay flat?

    python -m tests.bench.soak --minutes 60 --out tests/bench/results/soak-cpu.json

Several callers hand jobs to one workshop, as the student's threads do: of random size, ranks, layers, lengths, epochs
and dropout; one in eight is cancelled in the middle, one in eight has an adapter that cannot be trained. Memory is what
the operating system counts for the process, sampled once a second. The first sixth of the time is warm-up, in which the
allocator meets every size. Each of five parts after it does the jobs of the warm-up again, with other texts and in
another order, so that the means over the parts compare: what is left to differ is what meets in a batch.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from rookery.v1 import model_service_pb2
from rookery_shared.errors import Cancelled
from rookery_shared.jobs.lease import Lease
from rookery_shared.settings import TrainerSettings
from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Schedule
from rookery_tiny.world import VALUES
from rookery_training.workshop import Order, Workshop
from tests.bench.shapes import TINY
from tests.bench.training import machine

CALLERS = 3
PARTS = 5


class Soak:
    """Callers that never stop asking, until the time is up; then the same jobs again, part by part."""

    def __init__(self, folder: Path) -> None:
        settings = TrainerSettings(
            profile="profiles/soak",
            store_url=f"file://{folder}/objects",
            cache_folder=folder / "cache",
            checkpoint_seconds=1.0,
        )
        self.workshop = Workshop(settings)
        self.profile = model_service_pb2.Profile(
            name="profiles/soak", model=model_service_pb2.ModelSource(source=str(TINY)), dtype="float32"
        )
        self.adapters = self.failures = self.cancelled = self.jobs = 0
        self.errors: list[str] = []
        self._warm = [0] * CALLERS
        """How many jobs of each caller the warm-up had time for."""
        self._lock = threading.Lock()

    def warm_up(self, seconds: float) -> list[float]:
        """Memory in MiB, second by second."""
        until = time.monotonic() + seconds

        def call(caller: int) -> None:
            while time.monotonic() < until:
                self._one(caller, self._warm[caller], part=0)
                self._warm[caller] += 1

        return self._sampled(call, "warm-up")

    def part(self, number: int) -> list[float]:
        """Memory in MiB, second by second."""

        def call(caller: int) -> None:
            numbers = [*range(self._warm[caller])]
            random.Random(f"{caller}/{number}").shuffle(numbers)
            for job in numbers:
                self._one(caller, job, part=number)

        return self._sampled(call, f"part {number}")

    def _sampled(self, call: Callable[[int], None], what: str) -> list[float]:
        process, samples = psutil.Process(), list[float]()
        callers = [threading.Thread(target=call, args=(i,)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            samples.append(process.memory_info().rss / 2**20)
            if len(samples) % 60 == 0:
                print(f"{what}: {len(samples) // 60:3} min  {samples[-1]:7.1f} MiB  {self.jobs} jobs", flush=True)
            time.sleep(1.0)
        return samples

    def _one(self, caller: int, number: int, *, part: int) -> None:
        """A caller's job, whose number decides everything but its texts."""
        shapes, texts = random.Random(f"{caller}/{number}"), random.Random(f"{caller}/{number}/{part}")
        with self._lock:
            self.jobs += 1
            job = f"job-{self.jobs}"
        lease = Lease(job=job, epoch=1)
        if shapes.random() < 1 / 8:
            threading.Timer(shapes.uniform(0.1, 2.0), lease.stop, [Cancelled(f"{job} was cancelled")]).start()
        recipe = self._recipe(shapes)
        orders = [self._order(i, recipe, shapes, texts) for i in range(shapes.randint(1, 16))]
        if shapes.random() < 1 / 8:
            nothing = [Example(prompt="only a prompt", completion="")]
            orders.append(Order(key="nothing", examples=nothing, recipe=recipe, seed=0))
        made, failed = 0, 0
        try:
            for result in self.workshop.make(lease, self.profile, orders):
                made, failed = made + (result.adapter is not None), failed + bool(result.failure)
        except Cancelled:
            with self._lock:
                self.cancelled += 1
        except Exception as error:
            with self._lock:
                self.errors.append(f"{type(error).__name__}: {error}")
        lease.over()
        with self._lock:
            self.adapters, self.failures = self.adapters + made, self.failures + failed

    def _order(self, key: int, recipe: LoraRecipe, shapes: random.Random, texts: random.Random) -> Order:
        lengths = [shapes.randint(3, 60) for _ in range(shapes.randint(1, 10))]
        examples = [Example(completion=" ".join(texts.choices(VALUES, k=length))) for length in lengths]
        return Order(key=str(key), examples=examples, recipe=recipe, seed=texts.getrandbits(32))

    def _recipe(self, rng: random.Random) -> LoraRecipe:
        return LoraRecipe(
            rank=rng.choice([4, 8, 16, 32]),
            targets=rng.choice([("q_proj", "v_proj"), (ALL_LINEAR,), ("gate_proj", "up_proj", "down_proj")]),
            dropout=rng.choice([0.0, 0.0, 0.1]),
            epochs=rng.randint(1, 6),
            schedule=rng.choice(list(Schedule)),
            batch_size=rng.choice([0, 1, 2, 4]),
            gradient_accumulation=rng.choice([1, 2]),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--parts", type=int, default=PARTS, help="after the warm-up")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder))
        seconds = arguments.minutes * 60 / (1 + arguments.parts)
        started = time.monotonic()
        soak.warm_up(seconds)
        means = [statistics.fmean(soak.part(number)) for number in range(1, 1 + arguments.parts)]
        took = (time.monotonic() - started) / 60
        left = [path for path in Path(folder, "objects").rglob("unfinished/*/*") if path.is_file()]
    parts = [round(mean, 1) for mean in means]
    result = {
        "machine": machine("cpu"),
        "minutes": round(took, 1),
        "jobs": soak.jobs,
        "jobs_cancelled": soak.cancelled,
        "adapters": soak.adapters,
        "adapters_failed": soak.failures,
        "errors": soak.errors,
        "files_left_of_unfinished_jobs": len(left),
        "memory_mib": parts,
        "most_above_first_percent": round((max(parts) / parts[0] - 1) * 100, 2),
        "last_above_first_percent": round((parts[-1] / parts[0] - 1) * 100, 2),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if soak.errors:
        sys.exit(f"{len(soak.errors)} jobs broke")


if __name__ == "__main__":
    main()
