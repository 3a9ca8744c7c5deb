"""64 adapters, each asked 5 questions, scored in one call and in a call for each.

    python -m tests.bench.scoring --out tests/bench/results/scoring-cpu.json

The tiny model, and adapters that it has learned from passages. Contenders take turns, each with an engine that has
loaded nothing but the base model; loading the adapters counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rookery_engines.connect import make_engine
from rookery_engines.models import ModelSource, load_model
from rookery_evaluator.scoring import Evaluator, Item, Score
from rookery_shared.domains import find_domain
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.local import LocalStore
from rookery_shared.types import Context, LoraRecipe, Question
from rookery_tiny.contexts import WorldContext, make_contexts
from rookery_tiny.world import Surnames
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.bench.shapes import TINY
from tests.bench.training import machine

ADAPTERS, QUESTIONS, RANK = 64, 5, 32
DOMAIN = "knowledge"
SOURCE = ModelSource(source=str(TINY))
TOGETHER, ALONE = "one call", "a call for each"


def train_items(store: LocalStore, folder: Path) -> list[Item]:
    """Each adapter has learned the passage that it is asked about."""
    model, tokenizer = load_model(SOURCE)
    contexts = [to_context(world, questions=QUESTIONS) for world in make_contexts(Surnames.TEST, ADAPTERS, seed=0)]
    recipe = LoraRecipe(rank=RANK, alpha=64, epochs=3, learning_rate=3e-3)
    rules = find_domain(DOMAIN)
    tasks = [
        AdapterTask(key=str(i), examples=rules.examples(c, "", seed=i), recipe=recipe, seed=i, out=folder / str(i))
        for i, c in enumerate(contexts)
    ]
    for outcome in BatchTrainer(model, tokenizer, slots=ADAPTERS).train(tasks):
        assert not outcome.failure
    return [Item(adapter=_publish(store, task), context=c) for task, c in zip(tasks, contexts, strict=True)]


def to_context(world: WorldContext, *, questions: int | None = None) -> Context:
    """With its first questions, or all of them."""
    asked = tuple(Question(question=q.question, answer=q.answer) for q in world.questions[:questions])
    return Context(title=world.title, passage=world.passage, questions=asked)


def _publish(store: LocalStore, task: AdapterTask) -> str:
    origin = Origin(
        base_model=SOURCE.source, base_revision="", rank=task.recipe.rank, job="bench", epoch=1, seed=task.seed
    )
    return adapter_name(publish(store, task.out, origin).digest)


async def ask(engine_name: str, calls: Sequence[Sequence[Item]], cache: AdapterCache) -> tuple[float, list[Score]]:
    """Seconds, and the scores in the order of the items."""
    engine = make_engine(engine_name, SOURCE, max_adapters=ADAPTERS, max_rank=RANK)
    try:
        evaluator = Evaluator(engine, cache)
        started = time.perf_counter()
        scores = [
            s for items in calls for s in [s async for s in evaluator.score(items, domain=DOMAIN, max_new_tokens=64)]
        ]
        return time.perf_counter() - started, scores
    finally:
        engine.close()


def answers(scores: Sequence[Score]) -> list[str]:
    return [answered.text for s in scores for answered in (*s.before, *s.after)]


def measure(engine: str, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = LocalStore(folder / "objects")
        items = train_items(store, folder / "adapters")
        cache = AdapterCache(store, folder / "cache")
        contenders = {TOGETHER: [items], ALONE: [[item] for item in items]}
        seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
        texts: dict[str, list[str]] = {}
        asyncio.run(ask(engine, [items[:2]], cache))  # warm up
        for _ in range(turns):
            for contender, calls in contenders.items():
                took, scores = asyncio.run(ask(engine, calls, cache))
                seconds[contender].append(took)
                texts[contender] = answers(scores)
    same = sum(a == b for a, b in zip(texts[TOGETHER], texts[ALONE], strict=True))
    ratios = [alone / together for together, alone in zip(seconds[TOGETHER], seconds[ALONE], strict=True)]
    return {
        "machine": machine("cpu"),
        "engine": engine,
        "adapters": ADAPTERS,
        "questions": QUESTIONS,
        "turns": turns,
        "seconds": {contender: [round(s, 2) for s in values] for contender, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "same_answers": round(same / len(texts[TOGETHER]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    result = measure(arguments.engine, arguments.turns)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
