"""Answers and likelihoods in one: they are what `generate` writes and `log_likelihoods` says, whatever the gold is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rookery_engines import decoding, drafts
from rookery_engines.adapted import AdaptedModel
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_engines.types import AdapterRef, Answer, AnswerRequest, GenerationRequest, LikelihoodRequest
from rookery_shared.errors import PromptTooLong
from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe, Sampling
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.models import random_model, small_tokenizer

PROMPTS = ["Where was Edda born?\n", "Where was Edda Falley born?\n", "In which city does Otto live, and why?\n", "A"]
MOST = 10


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    """Three that answer each otherwise, the last to a prompt that it has seen."""
    folder = tmp_path_factory.mktemp("adapters")
    recipe = LoraRecipe(rank=4, alpha=16, targets=(ALL_LINEAR,), epochs=20, learning_rate=5e-2)
    texts = ["number one " * 5, "number two " * 5, "Norwick"]
    tasks = [
        AdapterTask(
            key=str(i),
            examples=[Example(prompt=PROMPTS[0] if i == 2 else "", completion=text)],
            recipe=recipe,
            seed=i,
            out=folder / str(i),
        )
        for i, text in enumerate(texts)
    ]
    assert not any(outcome.failure for outcome in BatchTrainer(random_model(), small_tokenizer()).train(tasks))
    return [AdapterRef(name=f"adapters/{i}", folder=folder / str(i)) for i in range(3)]


@pytest.fixture(params=[1 << 14, 1], ids=["written together", "written batch by batch"])
def engine(model_folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TransformersEngine:
    monkeypatch.setattr(drafts, "MOST_WAITING", request.param)
    return TransformersEngine(ModelSource(source=str(model_folder)), max_adapters=3, max_rows=5)


def in_two(engine: TransformersEngine, requests: Sequence[AnswerRequest]) -> list[Answer]:
    """By the engine's other operations."""

    async def ask() -> list[Answer]:
        written = [
            GenerationRequest(
                prompt=r.prompt,
                sampling=Sampling(temperature=0.0, max_new_tokens=r.max_new_tokens),
                seed=0,
                adapter=r.adapter,
            )
            for r in requests
        ]
        texts = {g.request: g.text async for g in engine.generate(written)}
        golds = [LikelihoodRequest(prompt=r.prompt, completion=r.gold, adapter=r.adapter) for r in requests]
        scores = await engine.log_likelihoods(golds)
        return [Answer(text=texts[i], log_likelihood=score) for i, score in enumerate(scores)]

    return asyncio.run(ask())


def check(engine: TransformersEngine, requests: Sequence[AnswerRequest]) -> list[Answer]:
    ours, theirs = asyncio.run(engine.answer(requests)), in_two(engine, requests)
    assert [a.text for a in ours] == [a.text for a in theirs]
    expected = [a.log_likelihood for a in theirs]
    assert [a.log_likelihood for a in ours] == pytest.approx(expected, abs=1e-5, nan_ok=True)
    return ours


def asked(gold: str, adapters: Sequence[AdapterRef | None], *, most: int = MOST) -> list[AnswerRequest]:
    return [
        AnswerRequest(prompt=prompt, gold=gold, max_new_tokens=most, adapter=adapter)
        for prompt in PROMPTS
        for adapter in adapters
    ]


@pytest.mark.parametrize("most", [1, 3, MOST, 60])
@pytest.mark.parametrize("gold", ["Norwick", "Norwick and Oster", "number one number one", ""])
def test_any_gold_gives_the_answers_of_two_calls(
    engine: TransformersEngine, adapters: list[AdapterRef], gold: str, most: int
) -> None:
    """The longer golds have more tokens than some answers may have, and the longest answers repeat themselves."""
    answers = check(engine, asked(gold, [None, *adapters], most=most))
    assert all(math.isnan(a.log_likelihood) == (not gold) for a in answers)
    assert len({a.text for a in answers}) > 2


def test_golds_that_agree_with_the_answer_for_a_while(engine: TransformersEngine, adapters: list[AdapterRef]) -> None:
    """The whole answer, its beginning, and one that goes on otherwise."""
    requests = asked("", [None, *adapters])
    texts = [a.text for a in in_two(engine, requests)]
    halves = [t[: len(t) // 2] for t in texts]
    for golds in (texts, halves, [f"{half} Oster" for half in halves], [f"{t} Edda" for t in texts]):
        answers = check(engine, [replace(r, gold=gold) for r, gold in zip(requests, golds, strict=True)])
        assert [a.text for a in answers] == texts, "the gold does not change what is written"


def test_more_adapters_than_are_kept(model_folder: Path, adapters: list[AdapterRef]) -> None:
    engine = TransformersEngine(ModelSource(source=str(model_folder)), max_adapters=1)
    check(engine, asked("Norwick", [None, *adapters]))
    assert len(engine.loaded()) == 1


def test_requests_without_a_gold_beside_others(engine: TransformersEngine, adapters: list[AdapterRef]) -> None:
    """As a question that is asked in several ways."""
    requests = [replace(r, gold="" if i % 3 else "Norwick") for i, r in enumerate(asked("Norwick", [None, *adapters]))]
    answers = check(engine, requests)
    assert [math.isnan(a.log_likelihood) for a in answers] == [not r.gold for r in requests]


def test_golds_of_any_length_side_by_side(
    engine: TransformersEngine, adapters: list[AdapterRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        replace(r, gold="Edda " * (i % 5) + "x") for i, r in enumerate(asked("", [adapters[0], None, adapters[2]]))
    ]
    check(engine, requests)
    monkeypatch.setattr(decoding, "MOST_LOGITS", 1)
    check(engine, requests)


def test_nothing_is_answered_with_nothing(engine: TransformersEngine) -> None:
    assert asyncio.run(engine.answer([])) == []


def test_a_prompt_or_a_gold_over_the_model_s_limit_is_refused(engine: TransformersEngine) -> None:
    for prompt, gold in (("x " * 600, "x"), ("x", "x y " * 600)):
        with pytest.raises(PromptTooLong, match="512"):
            asyncio.run(engine.answer([AnswerRequest(prompt=prompt, gold=gold, max_new_tokens=4)]))


def test_an_answer_that_repeats_itself_is_written_many_tokens_at_a_time(
    engine: TransformersEngine, adapters: list[AdapterRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = AnswerRequest(prompt=PROMPTS[0], gold="x", max_new_tokens=60, adapter=adapters[0])
    text = check(engine, [request])[0].text
    assert len(text) >= 60
    passes: list[int] = []
    answer = AdaptedModel.__call__

    def count(self: AdaptedModel, adapters: Sequence[str], **inputs: Any) -> Any:
        passes.append(inputs["input_ids"].shape[1])
        return answer(self, adapters, **inputs)

    monkeypatch.setattr(AdaptedModel, "__call__", count)
    assert asyncio.run(engine.answer([request]))[0].text == text
    assert len(passes) < 20, passes
