"""How reliable is the choice of a context's best self-edit: fixed seeds and racing, at the same cost?

    python -m tests.bench.racing --out tests/bench/results/racing-cpu.json

Self-edits of the tiny teacher, each trained with many seeds and scored, as in a round. Then, many times over: half of
the seeds, shuffled, are there to choose with, by fixed seeds or by racing; the other half tells what it is worth.
Trainings are done once; a choice only looks some of their scores up, so every method sees the same luck.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rookery.cli.quickstart import STUDENT_RECIPE
from rookery_coordinator.racing import Field, next_heats
from rookery_engines.models import load_model
from rookery_engines.transformers import TransformersEngine
from rookery_engines.types import AdapterRef, GenerationRequest
from rookery_shared.domains import find_domain
from rookery_shared.seeds import derive_seed
from rookery_shared.types import Context, LoraRecipe, Sampling
from rookery_shared.wire import recipe_from_proto
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.bench.scoring import DOMAIN, SOURCE, to_context
from tests.bench.training import machine

GRADER = "exact"
SHUFFLES = 200
CONFIDENCES = (0.7, 0.8, 0.9)

Scores = Sequence[Sequence[Sequence[float]]]
"""By context, self-edit and seed."""


def measure_scores(contexts: Sequence[Context], *, self_edits: int, seeds: int) -> list[list[list[float]]]:
    """The score of every self-edit with every seed."""
    engine, rules = TransformersEngine(SOURCE, max_adapters=64), find_domain(DOMAIN)
    recipe = recipe_from_proto(STUDENT_RECIPE, default=LoraRecipe(), field="recipe")
    trainer = BatchTrainer(*load_model(SOURCE), slots=32)
    scores: list[list[list[float]]] = []
    for number, context in enumerate(contexts):
        texts = asyncio.run(_write(engine, context, self_edits))
        with tempfile.TemporaryDirectory() as folder:
            tasks = [
                AdapterTask(
                    key=f"{i}-{seed}",
                    examples=rules.examples(context, text, seed=0),
                    recipe=recipe,
                    seed=derive_seed(0, "trial", seed),
                    out=Path(folder) / f"{i}-{seed}",
                )
                for i, text in enumerate(texts)
                for seed in range(seeds)
            ]
            for outcome in trainer.train(tasks):
                assert not outcome.failure
            graded = asyncio.run(_score(engine, context, number, tasks))
        scores.append([graded[i * seeds : (i + 1) * seeds] for i in range(len(texts))])
        print(f"context {number}: {[round(statistics.mean(values), 3) for values in scores[-1]]}", flush=True)
    return scores


async def _write(engine: TransformersEngine, context: Context, self_edits: int) -> list[str]:
    prompt = find_domain(DOMAIN).self_edit_prompt(context, style="implications")
    sampling = Sampling(top_p=1.0, max_new_tokens=256)
    requests = [GenerationRequest(prompt=prompt, sampling=sampling, seed=i) for i in range(self_edits)]
    texts = {g.request: g.text async for g in engine.generate(requests)}
    return [texts[i] for i in range(self_edits)]


async def _score(
    engine: TransformersEngine, context: Context, number: int, tasks: Sequence[AdapterTask]
) -> list[float]:
    """Mean grade over the questions, for each adapter."""
    rules, greedy = find_domain(DOMAIN), Sampling(temperature=0.0, max_new_tokens=16)
    prompts = [ask.prompt for ask in rules.asks(context)]
    refs = [AdapterRef(name=f"{number}/{task.key}", folder=task.out) for task in tasks]
    requests = [
        GenerationRequest(prompt=prompt, sampling=greedy, seed=0, adapter=ref) for ref in refs for prompt in prompts
    ]
    texts = {g.request: g.text.strip() async for g in engine.generate(requests)}
    grades = [rules.grade(context.questions[i % len(prompts)], texts[i])[GRADER] for i in range(len(requests))]
    return [statistics.mean(grades[i : i + len(prompts)]) for i in range(0, len(grades), len(prompts))]


def fixed(scores: Scores, seeds: int) -> Iterator[tuple[int, int]]:
    """The chosen self-edit of each context, and the trials that it took."""
    for context in scores:
        means = [statistics.mean(values[:seeds]) for values in context]
        yield means.index(max(means)), seeds * len(context)


def race(scores: Scores, seeds: int, confidence: float) -> Iterator[tuple[int, int]]:
    """As `fixed`, with the same budget. No self-edit has more trials than there are seeds to choose with."""
    seen = [[[values[0]] for values in context] for context in scores]
    while True:
        fields = [
            Field(scores=context, left=seeds * len(context) - sum(len(values) for values in context))
            for context in seen
        ]
        heats = [
            [i for i in heat if len(seen[c][i]) < len(scores[c][i])]
            for c, heat in enumerate(next_heats(fields, confidence=confidence))
        ]
        if not any(heats):
            break
        for c, heat in enumerate(heats):
            for i in heat:
                seen[c][i].append(scores[c][i][len(seen[c][i])])
    for context in seen:
        means = [statistics.mean(values) for values in context]
        yield means.index(max(means)), sum(len(values) for values in context)


def compare(scores: Scores, *, seeds: int) -> dict[str, dict[str, float]]:
    """Each method with a budget of so many trials for each self-edit."""
    rng = random.Random(seeds)
    count = len(scores[0][0])
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(SHUFFLES):
        order = rng.sample(range(count), count)
        shuffled = [[[values[i] for i in order] for values in context] for context in scores]
        to_choose = [[values[: count // 2] for values in context] for context in shuffled]
        fresh = [[statistics.mean(values[count // 2 :]) for values in context] for context in shuffled]
        methods = {"fixed": fixed(to_choose, seeds)}
        methods |= {f"race, {confidence:.0%}": race(to_choose, seeds, confidence) for confidence in CONFIDENCES}
        for method, choices in methods.items():
            rows = [(*_worth(context, i), cost) for context, (i, cost) in zip(fresh, choices, strict=True)]
            found.setdefault(method, []).append(tuple(statistics.mean(column) for column in zip(*rows, strict=True)))
    return {
        method: {
            "trials_per_context": round(statistics.mean(row[2] for row in rows), 1),
            "above_a_random_choice": round(statistics.mean(row[0] for row in rows), 4),
            "is_the_best_on_fresh_seeds": round(statistics.mean(row[1] for row in rows), 3),
        }
        for method, rows in found.items()
    }


def _worth(fresh: Sequence[float], chosen: int) -> tuple[float, float]:
    """How far above the mean of the context's self-edits, and whether it is the best or as good."""
    return fresh[chosen] - statistics.mean(fresh), float(fresh[chosen] == max(fresh))


def reliability(scores: Scores, *, seeds: int) -> float:
    """Share of a mean score's variance between the self-edits of a context that is theirs and not their seeds'."""
    noise = statistics.mean(statistics.variance(values) for context in scores for values in context)
    count = len(scores[0][0])
    seen = statistics.mean(statistics.variance([statistics.mean(v) for v in context]) for context in scores)
    own = max(0.0, seen - noise / count)
    return own / (own + noise / seeds) if own else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--self-edits", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--scores", type=Path, help="A result file whose scores are taken instead of measuring them.")
    arguments = parser.parse_args()
    if arguments.scores:
        scores = json.loads(arguments.scores.read_text())["scores"]
    else:
        contexts = [to_context(world) for world in make_contexts(Surnames.TRAIN, arguments.contexts, seed=7)]
        scores = measure_scores(contexts, self_edits=arguments.self_edits, seeds=arguments.seeds)
    result: dict[str, Any] = {
        "machine": machine("cpu"),
        "contexts": len(scores),
        "self_edits": len(scores[0]),
        "seeds": len(scores[0][0]),
        "reliability": {str(seeds): round(reliability(scores, seeds=seeds), 3) for seeds in (1, 2, 3, 4)},
        "budgets": {str(seeds): compare(scores, seeds=seeds) for seeds in (2, 3, 4)},
        "scores": [[[round(score, 4) for score in values] for values in context] for context in scores],
    }
    arguments.out.write_text(json.dumps(result) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "scores"}, indent=2))


if __name__ == "__main__":
    main()
