"""64 adapters, each asked 5 questions, scored in one call and one adapter at a time, with Rookery and without.

    python -m tests.bench.scoring --out tests/bench/results/scoring-cpu.json

The tiny model, and adapters that it has learned from passages. Contenders take turns, each with an engine that has
loaded nothing but the base model; loading the adapters counts. All answer each question with the adapter and without
it, and say how likely the gold answer is. Ours also verify the adapters' digests, prove that they answer, and grade.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rookery_engines.base import Engine
from rookery_engines.connect import make_engine
from rookery_engines.models import ModelSource, load_model
from rookery_engines.types import AdapterRef, GenerationRequest, LikelihoodRequest
from rookery_evaluator.scoring import Answered, Evaluator, Item, Score
from rookery_shared.domains import find_domain
from rookery_shared.domains.graders import LOGLIK
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.local import LocalStore
from rookery_shared.types import Context, LoraRecipe, Question, Sampling
from rookery_tiny.contexts import WorldContext, make_contexts
from rookery_tiny.world import Surnames
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.bench.peft_scoring import PeftScoring
from tests.bench.shapes import TINY
from tests.bench.training import machine

ADAPTERS, QUESTIONS, RANK = 64, 5, 32
DOMAIN = "knowledge"
SOURCE = ModelSource(source=str(TINY))
TOGETHER = "ours, one call"
LONGEST = 64
"""Tokens of an answer."""
Plain = tuple[str, float]
"""An answer, and the mean log-likelihood of the gold answer."""
Pair = tuple[Plain, Plain]
"""The base's and the adapter's."""
Contender = Callable[[], tuple[float, list[Pair]]]


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


async def ask(engine_name: str, calls: Sequence[Sequence[Item]], cache: AdapterCache) -> tuple[float, list[Pair]]:
    """Seconds, and the answers in the order of the items."""
    engine = make_engine(engine_name, SOURCE, max_adapters=ADAPTERS, max_rank=RANK)
    try:
        evaluator = Evaluator(engine, cache)
        started = time.perf_counter()
        scores: list[Score] = []
        for items in calls:
            scores += [s async for s in evaluator.score(items, domain=DOMAIN, max_new_tokens=LONGEST)]
        took = time.perf_counter() - started
    finally:
        engine.close()
    return took, [pair for s in scores for pair in zip(_plain(s.before), _plain(s.after), strict=True)]


def _plain(answers: Sequence[Answered]) -> list[Plain]:
    return [(answered.text, answered.grades[LOGLIK]) for answered in answers]


async def ask_engine(items: Sequence[Item], folder: Path, *, at_once: int) -> tuple[float, list[Pair]]:
    """As `ask`, by vLLM as it is without Rookery: load an adapter, ask, judge, and the same of the base."""
    from rookery_engines.vllm import VllmEngine  # which may not be installed

    class Released(VllmEngine):
        cpu_worker = "auto"

    engine = Released(SOURCE, max_adapters=1, max_rank=RANK)
    try:
        started = time.perf_counter()
        pairs: list[Pair] = []
        for i, item in enumerate(items):
            adapter, asked = AdapterRef(name=item.adapter, folder=folder / str(i)), questions(item)
            await engine.load(adapter)
            before, after = [
                [a for n in range(0, len(asked), at_once) for a in await _ask_some(engine, who, asked[n : n + at_once])]
                for who in (None, adapter)
            ]
            pairs += zip(before, after, strict=True)
        return time.perf_counter() - started, pairs
    finally:
        engine.close()


async def _ask_some(engine: Engine, adapter: AdapterRef | None, asked: Sequence[tuple[str, str]]) -> list[Plain]:
    sampling = Sampling(temperature=0.0, max_new_tokens=LONGEST)
    requests = [GenerationRequest(prompt=p, sampling=sampling, seed=0, adapter=adapter) for p, _ in asked]
    texts = {written.request: written.text async for written in engine.generate(requests)}
    golds = [LikelihoodRequest(prompt=p, completion=gold, adapter=adapter) for p, gold in asked]
    scores = await engine.log_likelihoods(golds)
    return [(texts[i].strip(), score) for i, score in enumerate(scores)]


def ask_peft(items: Sequence[Item], folder: Path, *, at_once: int) -> tuple[float, list[Pair]]:
    """As `ask`, by transformers and PEFT."""
    scoring = PeftScoring(*load_model(SOURCE), at_once=at_once)
    started = time.perf_counter()
    pairs: list[Pair] = []
    for i, item in enumerate(items):
        before, after = scoring.score(folder / str(i), questions(item), max_new_tokens=LONGEST)
        pairs += zip(before, after, strict=True)
    return time.perf_counter() - started, pairs


def questions(item: Item) -> list[tuple[str, str]]:
    """Prompts and gold answers."""
    asks = find_domain(DOMAIN).asks(item.context)
    return [(ask.prompt, item.context.questions[ask.question].answer) for ask in asks]


def contenders(engine: str, items: Sequence[Item], cache: AdapterCache, folder: Path) -> Mapping[str, Contender]:
    """By name; each returns its seconds and its answers. `folder` has the adapters as they were trained."""
    ours: dict[str, Contender] = {
        TOGETHER: lambda: asyncio.run(ask(engine, [items], cache)),
        "ours, a call for each adapter": lambda: asyncio.run(ask(engine, [[item] for item in items], cache)),
    }
    if engine == "vllm":
        return ours | {
            "vLLM as released, an adapter at a time": lambda: asyncio.run(ask_engine(items, folder, at_once=QUESTIONS)),
            "vLLM as released, a question at a time": lambda: asyncio.run(ask_engine(items, folder, at_once=1)),
        }
    return ours | {
        "PEFT, an adapter at a time": lambda: ask_peft(items, folder, at_once=QUESTIONS),
        "PEFT, a question at a time": lambda: ask_peft(items, folder, at_once=1),
    }


def measure(engine: str, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = LocalStore(folder / "objects")
        items = train_items(store, folder / "adapters")
        cache = AdapterCache(store, folder / "cache")
        compared = contenders(engine, items, cache, folder / "adapters")
        seconds: dict[str, list[float]] = {contender: [] for contender in compared}
        answers: dict[str, list[Pair]] = {}
        asyncio.run(ask(engine, [items[:2]], cache))  # warm up
        for _ in range(turns):
            for contender, run in compared.items():
                took, answers[contender] = run()
                seconds[contender].append(took)
    ratios = {name: [a / b for a, b in zip(took, seconds[TOGETHER], strict=True)] for name, took in seconds.items()}
    return {
        "machine": machine("cpu"),
        "engine": engine,
        "adapters": ADAPTERS,
        "questions": QUESTIONS,
        "turns": turns,
        "contenders": {
            name: {
                "seconds": [round(s, 2) for s in seconds[name]],
                "ratio": round(statistics.median(ratios[name]), 2),
                "ratios": [round(ratio, 2) for ratio in ratios[name]],
                "same_answers": round(same_texts(answers[name], answers[TOGETHER]), 4),
                "largest_difference_in_nats": round(difference(answers[name], answers[TOGETHER]), 6),
            }
            for name in compared
        },
    }


def same_texts(ours: Sequence[Pair], theirs: Sequence[Pair]) -> float:
    """The share of answers, without an adapter and with it, that are the same."""
    return statistics.mean(a == b for (a, _), (b, _) in _side_by_side(ours, theirs))


def difference(ours: Sequence[Pair], theirs: Sequence[Pair]) -> float:
    """The largest, of gold answers' log-likelihoods."""
    return max(abs(a - b) for (_, a), (_, b) in _side_by_side(ours, theirs))


def _side_by_side(ours: Sequence[Pair], theirs: Sequence[Pair]) -> list[tuple[Plain, Plain]]:
    return [(a, b) for mine, its in zip(ours, theirs, strict=True) for a, b in zip(mine, its, strict=True)]


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
