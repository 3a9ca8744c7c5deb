"""The teacher and the evaluator around an engine: policies by name, the base asked once, failures are no scores."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from transformers import AutoTokenizer

from rookery.v1.evaluator_service_pb2 import ScoreRequest
from rookery_engines.base import Engine
from rookery_engines.connect import find_adapter
from rookery_engines.encoding import encode
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_engines.types import (
    AdapterRef,
    Answer,
    AnswerRequest,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
)
from rookery_evaluator.scoring import Evaluator, Item, Score, question_set
from rookery_evaluator.server import EvaluatorApi
from rookery_shared.errors import (
    AdapterCorrupt,
    AdapterIgnored,
    AdapterMismatch,
    AdapterRefused,
    GradeNotANumber,
    InvalidField,
    ModelNotLoadable,
    ObjectMissing,
)
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.local import LocalStore
from rookery_shared.types import ALL_LINEAR, BASE_ADAPTER, Context, Example, LoraRecipe, Question, Sampling
from rookery_shared.wire import context_to_proto
from rookery_teacher.writing import Assignment, Teacher, Written
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.adapter_files import publish_unchecked
from tests.models import random_model, small_tokenizer

CONTEXT = Context(
    title="Edda Falley",
    passage="Edda Falley was born in Norwick.",
    questions=(Question(question="Where?", answer="Norwick"), Question(question="Who?", answer="Edda")),
)
SAMPLING = Sampling(max_new_tokens=8)


class CountingEngine(TransformersEngine):
    """Counts the requests for the base model."""

    base_requests = 0

    async def answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
        self.base_requests += sum(request.adapter is None for request in requests)
        return await super().answer(requests)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def cache(store: LocalStore, tmp_path: Path) -> AdapterCache:
    return AdapterCache(store, tmp_path / "cache")


@pytest.fixture
def engine(model_folder: Path) -> CountingEngine:
    return CountingEngine(ModelSource(source=str(model_folder)))


@pytest.fixture
def adapters(store: LocalStore, model_folder: Path, tmp_path: Path) -> list[str]:
    """Two published adapters of the model."""
    return [make_adapter(store, str(model_folder), tmp_path / str(i), text=f"adapter {i} ", seed=i) for i in range(2)]


def make_adapter(
    store: LocalStore, base_model: str, folder: Path, *, text: str, seed: int, learning_rate: float = 5e-2
) -> str:
    recipe = LoraRecipe(rank=4, alpha=16, targets=(ALL_LINEAR,), epochs=8, learning_rate=learning_rate)
    task = AdapterTask(key="it", examples=[Example(completion=text * 4)], recipe=recipe, seed=seed, out=folder)
    BatchTrainer(random_model(), small_tokenizer()).train_one(task)
    origin = Origin(base_model=base_model, base_revision="", rank=4, job="j", epoch=1, seed=seed)
    return adapter_name(publish(store, folder, origin).digest)


def write(
    teacher: Teacher, *, adapter: str = "", seeds: tuple[int, ...] = (1, 2), questions: bool = False
) -> list[Written]:
    async def collect() -> list[Written]:
        assignment = Assignment(context=CONTEXT, seeds=(1, 2), questions=questions)
        written = teacher.write(
            [assignment],
            adapter=adapter,
            domain="knowledge",
            style="implications",
            sampling=SAMPLING,
            recipe=LoraRecipe(),
        )
        return [text async for text in written]

    return sorted(asyncio.run(collect()), key=lambda text: text.index)


def score(evaluator: Evaluator, *adapters: str) -> list[Score]:
    async def collect() -> list[Score]:
        items = [Item(adapter=adapter, context=CONTEXT) for adapter in adapters]
        return [s async for s in evaluator.score(items, domain="knowledge", max_new_tokens=8)]

    return asyncio.run(collect())


class Scripted:
    """An engine whose texts follow from the seed; the last request finishes first."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self.text_of = text_of
        self.asked: list[list[int]] = []

    def ask(self, text: str) -> str:
        return text

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        self.asked.append([request.seed for request in requests])
        for place, request in reversed([*enumerate(requests)]):
            yield Generation(
                request=place,
                text=self.text_of(request.seed),
                finish=Finish.STOP,
                prompt_tokens=1,
                completion_tokens=1,
            )


def draw(
    text_of: Callable[[int], str],
    *,
    seeds: tuple[int, ...],
    redraws: int,
    temperature: float = 1.0,
    recipe: LoraRecipe = LoraRecipe(),
) -> tuple[list[Written], list[list[int]]]:
    """The texts by index, and the seeds of each call of the engine."""
    engine = Scripted(text_of)

    async def collect() -> list[Written]:
        written = Teacher(cast(Engine, engine), cast(AdapterCache, None)).write(
            [Assignment(context=CONTEXT, seeds=seeds, questions=False)],
            adapter=BASE_ADAPTER,
            domain="knowledge",
            style="implications",
            sampling=replace(SAMPLING, temperature=temperature),
            recipe=recipe,
            redraws=redraws,
        )
        return [text async for text in written]

    return sorted(asyncio.run(collect()), key=lambda text: text.index), engine.asked


def test_what_is_blank_or_there_already_is_drawn_again() -> None:
    texts = {1: "one", 2: " ", 3: "one\n", 4: "four"}
    written, asked = draw(lambda seed: texts.get(seed, f"new {seed}"), seeds=(1, 2, 3, 4), redraws=3)
    assert [w.draws for w in written] == [1, 2, 2, 1], "of two equal texts the second goes, whichever was ready first"
    assert [len(seeds) for seeds in asked] == [4, 2]
    assert [w.seed for w in written] == [1, *asked[1], 4]
    assert [w.generation.text for w in written] == ["one", *(f"new {seed}" for seed in asked[1]), "four"]
    again, _ = draw(lambda seed: texts.get(seed, f"new {seed}"), seeds=(1, 2, 3, 4), redraws=3)
    assert again == written, "the same seeds, the same texts"


def test_what_asks_students_for_too_many_steps_is_drawn_again() -> None:
    two_steps = LoraRecipe(epochs=1, max_steps=2)
    texts = {1: "three\nlines\nand the passage", 2: "one"}
    written, asked = draw(lambda seed: texts.get(seed, "another"), seeds=(1, 2), redraws=2, recipe=two_steps)
    assert [len(seeds) for seeds in asked] == [2, 1]
    assert [w.generation.text for w in written] == ["another", "one"]


def test_the_budget_of_draws_ends_with_whatever_is_there() -> None:
    written, asked = draw(lambda seed: "", seeds=(1, 2), redraws=2)
    assert [len(seeds) for seeds in asked] == [2, 2, 2]
    assert [(w.draws, w.generation.text) for w in written] == [(3, ""), (3, "")]


@pytest.mark.parametrize(("redraws", "temperature"), [(0, 1.0), (5, 0.0)])
def test_nothing_is_drawn_again_unasked_or_where_it_would_be_the_same(redraws: int, temperature: float) -> None:
    written, asked = draw(lambda seed: "", seeds=(1, 2), redraws=redraws, temperature=temperature)
    assert asked == [[1, 2]]
    assert [w.draws for w in written] == [1, 1]


def test_instruct_models_are_asked_through_their_template(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(model_folder, folder)
    with pytest.raises(ModelNotLoadable, match="no chat template"):
        TransformersEngine(ModelSource(source=str(folder), chat=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    engine = TransformersEngine(ModelSource(source=str(folder), chat=True))
    teacher = Teacher(engine, cast(AdapterCache, None))
    [first, _] = write(teacher, adapter=BASE_ADAPTER)
    begin = str(tokenizer.bos_token)
    assert first.prompt.startswith(f"{begin}<user>Let's read")
    assert first.prompt.endswith("Implications:\n<assistant>")
    plain = TransformersEngine(ModelSource(source=str(folder)))
    [unasked, _] = write(Teacher(plain, cast(AdapterCache, None)), adapter=BASE_ADAPTER)
    assert unasked.prompt.startswith("Let's read")
    assert encode(tokenizer, first.prompt).count(tokenizer.bos_token_id) == 1, "what the template writes is not doubled"


def test_every_text_says_which_policy_wrote_it(
    engine: CountingEngine, cache: AdapterCache, adapters: list[str]
) -> None:
    teacher = Teacher(engine, cache)
    by_base = write(teacher)
    assert {text.adapter for text in by_base} == {BASE_ADAPTER}
    asyncio.run(teacher.activate(adapters[0]))
    by_active = write(teacher)
    assert {text.adapter for text in by_active} == {adapters[0]}
    assert [t.generation.text for t in by_active] != [t.generation.text for t in by_base]
    named = write(teacher, adapter=BASE_ADAPTER)
    assert [t.generation.text for t in named] == [t.generation.text for t in by_base], "a request names its policy"
    assert [t.seed for t in named] == [1, 2]
    assert named[0].prompt.endswith("Implications:\n")
    assert write(teacher, questions=True)[0].prompt.endswith("Question 1: ")


def test_a_policy_that_does_not_load_leaves_the_old_one_active(engine: CountingEngine, cache: AdapterCache) -> None:
    teacher = Teacher(engine, cache)
    with pytest.raises(ObjectMissing):
        asyncio.run(teacher.activate(f"adapters/{'0' * 64}"))
    assert teacher.active == BASE_ADAPTER
    assert write(teacher)


def test_answers_with_the_adapter_and_without_it(
    engine: CountingEngine, cache: AdapterCache, adapters: list[str]
) -> None:
    first, second = score(Evaluator(engine, cache), *adapters)
    assert first.before == second.before
    assert [a.text for a in first.after] != [a.text for a in first.before]
    assert [a.text for a in first.after] != [a.text for a in second.after]
    grades = first.after[0].grades
    assert {*grades} == {"exact", "f1", "contains", "match", "loglik", "likelihood"}
    assert 0 < grades["likelihood"] == math.exp(grades["loglik"]) < 1
    assert first.question_set == question_set(CONTEXT.questions)


def test_the_base_is_asked_once(engine: CountingEngine, cache: AdapterCache, adapters: list[str]) -> None:
    evaluator = Evaluator(engine, cache)
    score(evaluator, *adapters)
    score(evaluator, adapters[0])
    assert engine.base_requests == len(CONTEXT.questions)


def test_scores_of_one_call_are_those_of_a_call_each(
    engine: CountingEngine, cache: AdapterCache, adapters: list[str]
) -> None:
    together = score(Evaluator(engine, cache), *adapters, BASE_ADAPTER)
    alone = [score(Evaluator(engine, cache), adapter)[0] for adapter in (*adapters, BASE_ADAPTER)]
    for one, other in zip(together, alone, strict=True):
        for mine, its in zip([*one.before, *one.after], [*other.before, *other.after], strict=True):
            assert mine.text == its.text
            assert mine.grades == pytest.approx(its.grades, abs=1e-5)
    assert [a.text for a in together[2].after] == [a.text for a in together[2].before]


def test_an_engine_that_ignores_adapters_is_found_out(
    model_folder: Path, cache: AdapterCache, store: LocalStore, adapters: list[str], tmp_path: Path
) -> None:
    class Ignorant(TransformersEngine):
        """Loads adapters and answers as the base."""

        async def answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
            return await super().answer([replace(request, adapter=None) for request in requests])

        async def log_likelihoods(self, requests):  # type: ignore[no-untyped-def]
            for request in requests:
                if request.adapter is not None:
                    await self.load(request.adapter)
            return await super().log_likelihoods([replace(request, adapter=None) for request in requests])

    evaluator = Evaluator(Ignorant(ModelSource(source=str(model_folder))), cache)
    for _ in range(2):  # another attempt at the job must not take it for proved
        with pytest.raises(AdapterIgnored, match=adapters[0]):
            score(evaluator, adapters[0])

    nothing = make_adapter(store, str(model_folder), tmp_path / "nothing", text="x ", seed=3, learning_rate=0.0)
    [same] = score(Evaluator(TransformersEngine(ModelSource(source=str(model_folder))), cache), nothing)
    assert [a.text for a in same.after] == [a.text for a in same.before], "an empty adapter is no fault of the engine"
    hardly = make_adapter(store, str(model_folder), tmp_path / "hardly", text="x ", seed=3, learning_rate=1e-9)
    [same] = score(Evaluator(Ignorant(ModelSource(source=str(model_folder))), cache), hardly)
    assert [a.text for a in same.after] == [a.text for a in same.before], "nor one whose effect cannot be seen"


def test_another_adapter_s_weights_under_the_name_are_an_error(
    engine: CountingEngine, cache: AdapterCache, store: LocalStore, adapters: list[str]
) -> None:
    store.write(f"{adapters[0]}/adapter_model.safetensors", store.read(f"{adapters[1]}/adapter_model.safetensors"))
    with pytest.raises(AdapterCorrupt, match=adapters[0]):
        score(Evaluator(engine, cache), adapters[0])


def test_an_adapter_of_another_rank_is_an_error(
    engine: CountingEngine, cache: AdapterCache, store: LocalStore, adapters: list[str], tmp_path: Path
) -> None:
    folder, manifest = cache.fetch(adapters[0])
    shutil.copytree(folder, tmp_path / "wrong")
    config = tmp_path / "wrong" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    origin = Origin(base_model=manifest.base_model, base_revision="", rank=8, job="j", epoch=1, seed=0)
    with pytest.raises(AdapterRefused, match="shape"):
        publish(store, tmp_path / "wrong", origin)
    wrong = publish_unchecked(store, tmp_path / "wrong", origin)
    with pytest.raises(AdapterRefused, match="shape"):
        score(Evaluator(engine, cache), wrong)


def test_an_adapter_of_another_base_is_an_error_and_no_score(
    engine: CountingEngine, cache: AdapterCache, store: LocalStore, tmp_path: Path
) -> None:
    foreign = make_adapter(store, "another/model", tmp_path / "foreign", text="x ", seed=3)
    with pytest.raises(AdapterMismatch, match="another/model"):
        score(Evaluator(engine, cache), foreign)
    with pytest.raises(AdapterMismatch):
        asyncio.run(Teacher(engine, cache).activate(foreign))


def test_a_corrupt_adapter_is_an_error_and_no_score(
    engine: CountingEngine, cache: AdapterCache, store: LocalStore, adapters: list[str]
) -> None:
    key = f"{adapters[0]}/adapter_model.safetensors"
    content = bytearray(store.read(key))
    content[-1] ^= 1
    store.write(key, bytes(content))
    with pytest.raises(AdapterCorrupt):
        score(Evaluator(engine, cache), adapters[0])


@pytest.mark.parametrize(
    ("item", "texts", "field"),
    [
        (CONTEXT, ["x", " "], "retention_texts[1]"),
        (CONTEXT, ["x"] * 1001, "retention_texts"),
        (
            replace(CONTEXT, questions=(Question(question="Q?", answer=" "),)),
            [],
            "items[0].context.questions[0].answer",
        ),
        (replace(CONTEXT, questions=()), [], "items[0].context.questions"),
    ],
)
def test_what_cannot_be_scored_is_named(
    engine: CountingEngine, cache: AdapterCache, item: Context, texts: list[str], field: str
) -> None:
    request = ScoreRequest(
        items=[ScoreRequest.Item(adapter=BASE_ADAPTER, context=context_to_proto(item))], retention_texts=texts
    )

    async def ask() -> None:
        async for _ in EvaluatorApi(Evaluator(engine, cache)).Score(request, None):  # type: ignore[arg-type]  # unused
            pass

    with pytest.raises(InvalidField) as raised:
        asyncio.run(ask())
    assert raised.value.metadata["field"] == field


def test_a_likelihood_that_is_no_number_is_no_score(
    engine: CountingEngine, cache: AdapterCache, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(requests: Sequence[AnswerRequest]) -> list[Answer]:
        scores = [math.nan if request.gold == "Norwick" else -1.0 - i for i, request in enumerate(requests)]
        return [Answer(text="", log_likelihood=score) for score in scores]

    monkeypatch.setattr(engine, "answer", broken)
    with pytest.raises(GradeNotANumber, match="nan"):
        score(Evaluator(engine, cache), adapters[0])


def test_likelihoods_that_nobody_waits_for_stop(engine: CountingEngine) -> None:
    """Two thousand texts are asked for and given up: the next call does not wait for them."""
    many = [LikelihoodRequest(prompt="\n", completion="one of many texts " * 10) for _ in range(2000)]

    async def seconds() -> tuple[float, float]:
        started = time.monotonic()
        await engine.log_likelihoods(many[:200])
        for_some = time.monotonic() - started
        with suppress(TimeoutError):
            await asyncio.wait_for(engine.log_likelihoods(many), for_some / 4)
        started = time.monotonic()
        await engine.log_likelihoods(many[:1])
        return for_some, time.monotonic() - started

    for_some, waited = asyncio.run(seconds())
    assert waited < 2 * for_some, "and not for ten times as long"


def test_forgetting_is_what_other_texts_lose(
    engine: CountingEngine, cache: AdapterCache, store: LocalStore, model_folder: Path, tmp_path: Path
) -> None:
    """One adapter has learned the first text; against the base's own likelihoods, asked one by one."""
    texts = ["adapter 0 adapter 0 adapter 0", "Norwick is a city where nothing of it was heard."]
    adapter = make_adapter(store, str(model_folder), tmp_path / "a", text="adapter 0 ", seed=0)

    async def ask() -> tuple[list[Score], list[float], list[float]]:
        evaluator = Evaluator(engine, cache)
        item = Item(adapter=adapter, context=CONTEXT)
        scores = [
            s
            for asked in (texts[:1], texts[1:], texts)
            async for s in evaluator.score([item], domain="knowledge", max_new_tokens=8, retention_texts=asked)
        ]
        ref = await find_adapter(cache, engine, adapter)
        return scores, await likelihoods(None), await likelihoods(ref)

    async def likelihoods(ref: AdapterRef | None) -> list[float]:
        requests = [LikelihoodRequest(prompt="\n", completion=text, adapter=ref) for text in texts]
        return [value for request in requests for value in await engine.log_likelihoods([request])]

    scores, without, with_it = asyncio.run(ask())
    learned, other, both = (s.forgetting for s in scores)
    assert learned < min(0.0, other)
    lost = [before - after for before, after in zip(without, with_it, strict=True)]
    assert [learned, other] == pytest.approx(lost, abs=1e-4)
    assert both == pytest.approx(sum(lost) / 2, abs=1e-4)
    assert score(Evaluator(engine, cache), adapter)[0].forgetting == 0
