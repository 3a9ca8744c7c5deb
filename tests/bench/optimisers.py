"""ReST-EM and GRPO on the same budget: the quickstart's run with each, in one table.

    python -m tests.bench.optimisers --out tests/bench/results/optimisers-cpu.json [--seeds 1 2 3]

Each run has all services and a folder of its own, and for a seed the same contexts, the same first self-edits and as
many trials. The teacher's epochs, rate and batch are each optimiser's own, and so are GRPO's clipping and weight of the
divergence: chosen on contexts of other entities than those that are measured on. Scores are exact matches on the test
contexts; p is of a paired t-test over them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rookery import Client, Recipe
from rookery.cli.quickstart import STUDENT, TEACHER, TEACHER_RECIPE, quickstart_run, register
from rookery.cli.recipes import OptimiserName
from rookery.cli.render import as_dict
from rookery.local.cluster import Cluster
from rookery.local.logs import LogView
from rookery.local.ports import free_port
from rookery.v1.adaptation_service_pb2 import STATE_SUCCEEDED
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER
from rookery.v1.run_service_pb2 import Grpo, PolicyOptimiser, RestEm, Run
from tests.bench.training import machine

RECIPES = {
    OptimiserName.rest_em: TEACHER_RECIPE,
    OptimiserName.grpo: Recipe(rank=16, alpha=32, targets=["all-linear"], epochs=4, learning_rate=4e-3, batch_size=10),
}
OPTIMISERS = {
    OptimiserName.rest_em: PolicyOptimiser(rest_em=RestEm()),
    OptimiserName.grpo: PolicyOptimiser(grpo=Grpo(kl_coefficient=0.01, clip_range=0.8)),
}
"""With the paper's 0.04 and 0.2 the tiny model's policy hardly moves in so few steps."""
BEFORE, ROUND_1, ROUND_2 = "self-edits before RL", "after round 1", "after round 2"


@contextmanager
def running_system() -> Iterator[Client]:
    """All services, and a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder, address = Path(name), f"127.0.0.1:{free_port()}"
        cluster = Cluster(folder, address=address, sink=LogView(folder / "logs", None), torch_threads=1)
        cluster.start()
        try:
            with Client(address) as client:
                yield client
        finally:
            cluster.stop()


def finished(client: Client, asked: Run) -> Run:
    """A run of the base teacher to its end."""
    register(client, TEACHER, ROLE_TEACHER, "tiny")
    register(client, STUDENT, ROLE_STUDENT, "tiny")
    run = client.create_run(asked).name
    for event in client.watch_run(run):
        print(f"  {event.message}", flush=True)
    done = client.get_run(run)
    assert done.state == STATE_SUCCEEDED, done.failure
    return done


def measure(client: Client, optimiser: OptimiserName, *, seed: int, train: int, test: int) -> dict[str, Any]:
    asked = quickstart_run(TEACHER, STUDENT, train=train, test=test, seed=seed)
    asked.plan.control = False
    asked.plan.optimiser.CopyFrom(OPTIMISERS[optimiser])
    asked.plan.teacher_recipe.CopyFrom(RECIPES[optimiser])
    print(f"{optimiser}, seed {seed}", flush=True)
    started = time.monotonic()
    run = finished(client, asked)
    scores = {m.name: (m.mean, m.standard_error) for m in run.measurements}
    [compared] = [c for c in run.comparisons if c.second == ROUND_2]
    return {
        "optimiser": optimiser.value,
        "seed": seed,
        "trials": run.progress.trials_done,
        "learned_from": [r.kept for r in run.rounds if r.kept],
        "before": _rounded(*scores[BEFORE]),
        "after round 1": _rounded(*scores[ROUND_1]),
        "after round 2": _rounded(*scores[ROUND_2]),
        "gain": _rounded(compared.mean_difference, compared.standard_error),
        "p": None if math.isnan(compared.p_value) else compared.p_value,
        "seconds": round(time.monotonic() - started),
    }


def _rounded(mean: float, error: float) -> list[float]:
    return [round(mean, 4), round(error, 4)]


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    columns = ("before", "after round 1", "after round 2", "gain")
    yield "| optimiser | seed | " + " | ".join(columns) + " | p |"
    yield "|---|---:|" + "---:|" * (len(columns) + 1)
    for row in rows:
        cells = [f"{row[column][0]:.3f} ± {row[column][1]:.3f}" for column in columns]
        p_value = "" if row["p"] is None else f"{row['p']:.1g}"
        yield f"| {row['optimiser']} | {row['seed']} | " + " | ".join(cells) + f" | {p_value} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--train", type=int, default=32, help="contexts of a round")
    parser.add_argument("--test", type=int, default=48, help="contexts to measure on")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        for optimiser in OptimiserName:
            with running_system() as client:
                rows.append(measure(client, optimiser, seed=seed, train=arguments.train, test=arguments.test))
    result = {
        "machine": machine("cpu"),
        "train_contexts_of_a_round": arguments.train,
        "test_contexts": arguments.test,
        "optimisers": {name.value: as_dict(RECIPES[name]) | as_dict(OPTIMISERS[name]) for name in OptimiserName},
        "runs": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
