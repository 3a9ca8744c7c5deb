"""An hour of random jobs in one training process: does its memory stay flat?

    python -m tests.bench.soak --minutes 60 --out tests/bench/results/soak-cpu.json

Several callers hand jobs to one workshop, as the student's threads do: of random size, ranks, layers, lengths, epochs
and dropout; one in eight is cancelled when its first adapter is done, one in eight has an adapter that cannot be
trained. Memory is what the operating system counts for the process, looked at whenever an adapter is done: a minute in
which the machine was busy with other things counts for no more than it was used. The first sixth of the time is
warm-up, in which the allocator meets every size. Each of five parts after it does the same jobs over and over with
other texts, until its time is up; callers begin each of their jobs together and in one order, so that the same jobs
meet in a batch and the means over the parts compare. Before they begin nobody is at work, and memory is looked at too:
what is there then is held for nobody, and does not depend on who meets whom in a batch. Growth is that of a straight
line through the means of all turns, with the 95 % interval of its slope, as if turns were independent.
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
from itertools import chain
from pathlib import Path
from typing import Any

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
APART_SECONDS = 0.01
"""Between two callers' beginning: less than a tick, and as a rule enough for them to come in one order."""


class Part:
    """Looks at memory, in MiB, turn by turn."""

    def __init__(self) -> None:
        self.working: list[list[float]] = []
        """Whenever an adapter is done."""
        self.resting: list[list[float]] = []
        """Whenever nobody is at work."""


class Soak:
    """Callers that never stop asking."""

    def __init__(self, folder: Path, *, jobs: int) -> None:
        """Each caller has so many, over and over."""
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
        self._jobs_of_caller = jobs
        self.adapters = self.failures = self.cancelled = self.jobs = 0
        self.errors: list[str] = []
        self._turn: list[float] = []
        self._lock = threading.Lock()

    def part(self, number: int, seconds: float) -> Part:
        """Whole turns of the callers' jobs for at least so long."""
        part, until = Part(), time.monotonic() + seconds
        while time.monotonic() < until:
            resting: list[float] = []
            part.resting.append(resting)
            part.working.append(self._take_turn(f"{number}/{len(part.working)}", resting))
        return part

    def _take_turn(self, name: str, resting: list[float]) -> list[float]:
        self._turn, started = [], time.monotonic()
        together = threading.Barrier(CALLERS, action=lambda: resting.append(self._memory()))

        def call(caller: int) -> None:
            for job in range(self._jobs_of_caller):
                together.wait()
                time.sleep(caller * APART_SECONDS)
                self._one(caller, job, texts=name)

        callers = [threading.Thread(target=call, args=(i,)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        working, at_rest = statistics.fmean(self._turn), statistics.fmean(resting)
        seconds = time.monotonic() - started
        print(f"{name}: {seconds:5.1f} s  {working:7.1f} MiB, at rest {at_rest:7.1f}  {self.jobs} jobs", flush=True)
        return self._turn

    @staticmethod
    def _memory() -> float:
        """Of this process, in MiB."""
        return psutil.Process().memory_info().rss / 2**20

    def _one(self, caller: int, number: int, *, texts: str) -> None:
        """A caller's job, whose number decides everything but its texts."""
        shapes, words = random.Random(f"{caller}/{number}"), random.Random(f"{caller}/{number}/{texts}")
        with self._lock:
            self.jobs += 1
            job = f"job-{self.jobs}"
        lease = Lease(job=job, epoch=1)
        is_cancelled = shapes.random() < 1 / 8
        recipe = self._recipe(shapes)
        orders = [self._order(i, recipe, shapes, words) for i in range(shapes.randint(1, 16))]
        if shapes.random() < 1 / 8:
            nothing = [Example(prompt="only a prompt", completion="")]
            orders.append(Order(key="nothing", examples=nothing, recipe=recipe, seed=0))
        made, failed = 0, 0
        try:
            for result in self.workshop.make(lease, self.profile, orders):
                made, failed = made + (result.adapter is not None), failed + bool(result.failure)
                self._turn.append(self._memory())
                if is_cancelled:
                    lease.stop(Cancelled(f"{job} was cancelled"))
        except Cancelled:
            with self._lock:
                self.cancelled += 1
        except Exception as error:
            with self._lock:
                self.errors.append(f"{type(error).__name__}: {error}")
        lease.over()
        with self._lock:
            self.adapters, self.failures = self.adapters + made, self.failures + failed

    def _order(self, key: int, recipe: LoraRecipe, shapes: random.Random, words: random.Random) -> Order:
        lengths = [shapes.randint(3, 60) for _ in range(shapes.randint(1, 10))]
        examples = [Example(completion=" ".join(words.choices(VALUES, k=length))) for length in lengths]
        return Order(key=str(key), examples=examples, recipe=recipe, seed=words.getrandbits(32))

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


def flatness(parts: list[list[list[float]]]) -> dict[str, Any]:
    """Of looks in MiB by part and turn; turns take equally long, and growth is told of three or more."""
    means = [statistics.fmean(chain.from_iterable(part)) for part in parts]
    turns = [statistics.fmean(turn) for part in parts for turn in part]
    result: dict[str, Any] = {
        "mib_of_parts": [round(mean, 1) for mean in means],
        "furthest_from_first_percent": round(max(abs(mean / means[0] - 1) for mean in means) * 100, 2),
        "last_above_first_percent": round((means[-1] / means[0] - 1) * 100, 2),
    }
    if len(turns) >= 3:
        grown, error = line(turns)
        scale = 100 / statistics.fmean(turns)
        result["growth_percent"] = round(grown * scale, 2)
        result["growth_percent_interval"] = [round((grown + side * 1.96 * error) * scale, 2) for side in (-1, 1)]
    return result


def line(values: list[float]) -> tuple[float, float]:
    """How much a straight line through at least three values rises from first to last, and its standard error."""
    times = [i / (len(values) - 1) for i in range(len(values))]
    slope, start = statistics.linear_regression(times, values)
    left = sum((value - start - slope * at) ** 2 for at, value in zip(times, values, strict=True))
    spread = sum((at - 0.5) ** 2 for at in times)
    return slope, (left / (len(values) - 2) / spread) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--parts", type=int, default=PARTS, help="after the warm-up")
    parser.add_argument("--jobs", type=int, default=20, help="of a caller, done over and over")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), jobs=arguments.jobs)
        seconds = arguments.minutes * 60 / (1 + arguments.parts)
        started = time.monotonic()
        _, *parts = [soak.part(number, seconds) for number in range(1 + arguments.parts)]
        took = (time.monotonic() - started) / 60
        left = [path for path in Path(folder, "objects").rglob("unfinished/*/*") if path.is_file()]
    result = {
        "machine": machine("cpu"),
        "minutes": round(took, 1),
        "jobs": soak.jobs,
        "jobs_cancelled": soak.cancelled,
        "adapters": soak.adapters,
        "adapters_failed": soak.failures,
        "errors": soak.errors,
        "files_left_of_unfinished_jobs": len(left),
        "working": flatness([part.working for part in parts]),
        "at_rest": flatness([part.resting for part in parts]),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if soak.errors:
        sys.exit(f"{len(soak.errors)} jobs broke")


if __name__ == "__main__":
    main()
