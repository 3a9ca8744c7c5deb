"""Every engine answers alike: the same weights give the same greedy tokens and the same likelihoods.

The vLLM engine, and the openai engine against vLLM's own server, are tested where vLLM is installed (`make test-vllm`);
`ROOKERY_NEEDS_VLLM` makes its absence a failure.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import SecretStr

from rookery_engines.base import Engine, Metered
from rookery_engines.connect import make_engine
from rookery_engines.models import ModelSource, load_model
from rookery_engines.probing import probe
from rookery_engines.types import AdapterRef, AnswerRequest, Finish, Generation, GenerationRequest, LikelihoodRequest
from rookery_shared.domains import find_domain
from rookery_shared.errors import AdapterRefused, PromptTooLong, RemoteRefused
from rookery_shared.grids.configuration import read_configuration
from rookery_shared.settings import RemoteModel
from rookery_shared.types import ALL_LINEAR, Context, Demonstration, LoraRecipe, Question, Sampling
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.bench.scoring import to_context
from tests.bench.shapes import TINY
from tests.servers.openai import start_vllm

SOURCE = ModelSource(source=str(TINY))
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
QUESTIONS = 500
ADAPTERS = 8
RULES = find_domain("knowledge")

_log = logging.getLogger(__name__)

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None and "ROOKERY_NEEDS_VLLM" not in os.environ, reason="vLLM is not installed"
)


def contexts() -> list[Context]:
    return [to_context(world) for world in make_contexts(Surnames.TEST, 60, seed=0)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[AdapterRef]:
    """Each has learned one passage."""
    folder = tmp_path_factory.mktemp("adapters")
    recipe = LoraRecipe(rank=16, alpha=32, targets=(ALL_LINEAR,), epochs=8, learning_rate=3e-3)
    tasks = [
        AdapterTask(
            key=str(i), examples=RULES.examples(context, "", seed=i), recipe=recipe, seed=i, out=folder / str(i)
        )
        for i, context in enumerate(contexts()[:ADAPTERS])
    ]
    assert not any(outcome.failure for outcome in BatchTrainer(*load_model(SOURCE)).train(tasks))
    return [AdapterRef(name=f"adapters/{i}", folder=folder / str(i)) for i in range(ADAPTERS)]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def make(runner: asyncio.Runner, name: str) -> Engine:
    async def inside() -> Engine:
        return make_engine(name, SOURCE, max_adapters=ADAPTERS, max_rank=16)

    return runner.run(inside())


@pytest.fixture(scope="module")
def reference(runner: asyncio.Runner) -> Engine:
    return make(runner, "transformers")


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=needs_vllm)])
def engine(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Engine]:
    engine = make(runner, request.param)
    yield engine
    engine.close()


async def write(engine: Engine, requests: list[GenerationRequest]) -> list[Generation]:
    written = [generation async for generation in engine.generate(requests)]
    return sorted(written, key=lambda generation: generation.request)


def questions(adapters: list[AdapterRef]) -> list[GenerationRequest]:
    """To the adapters and to the base, in turn."""
    prompts = [ask.prompt for context in contexts() for ask in RULES.asks(context)]
    who = [None, *adapters]
    return [
        GenerationRequest(prompt=prompt, sampling=GREEDY, seed=0, adapter=who[i % len(who)])
        for i, prompt in enumerate(prompts[:QUESTIONS])
    ]


@pytest.mark.timeout(600)
def test_greedy_answers_are_the_same(
    engine: Engine, reference: Engine, runner: asyncio.Runner, adapters: list[AdapterRef]
) -> None:
    asked = questions(adapters)
    assert len(asked) == QUESTIONS
    ours, theirs = (runner.run(write(one, asked)) for one in (engine, reference))
    different = [
        f"{request.prompt!r}: {a.text!r}, {b.text!r}"
        for request, a, b in zip(asked, ours, theirs, strict=True)
        if (a.text, a.finish, a.completion_tokens) != (b.text, b.finish, b.completion_tokens)
    ]
    _log.warning("%s: %d of %d answers differ\n%s", engine.name, len(different), QUESTIONS, "\n".join(different))
    assert len(different) <= 0.01 * QUESTIONS, different
    assert all(a.prompt_tokens == b.prompt_tokens for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def endpoint(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteModel]:
    """vLLM's own server of the same weights."""
    with start_vllm(str(TINY), key="sk-vllm", log=tmp_path_factory.mktemp("vllm") / "log") as url:
        yield RemoteModel.model_validate({"url": url, "key": "sk-vllm", "api": "completions", "concurrency": 32})


def make_remote(runner: asyncio.Runner, remote: RemoteModel) -> Engine:
    async def inside() -> Engine:
        return make_engine("openai", SOURCE, remote=remote)

    return runner.run(inside())


@needs_vllm
@pytest.mark.timeout(900)
def test_greedy_texts_of_an_endpoint_are_the_same(
    endpoint: RemoteModel, reference: Engine, runner: asyncio.Runner
) -> None:
    """Its count of tokens has the one that closes a text; ours has not."""
    remote = make_remote(runner, endpoint)
    asked = questions([])
    ours, theirs = (runner.run(write(one, asked)) for one in (remote, reference))
    different = [
        f"{request.prompt!r}: {a.text!r}, {b.text!r}"
        for request, a, b in zip(asked, ours, theirs, strict=True)
        if (a.text, a.finish) != (b.text, b.finish)
    ]
    _log.warning("openai: %d of %d answers differ\n%s", len(different), QUESTIONS, "\n".join(different))
    assert len(different) <= 0.01 * QUESTIONS, different
    assert all(a.prompt_tokens == b.prompt_tokens for a, b in zip(ours, theirs, strict=True))
    assert isinstance(remote, Metered)
    assert remote.usage.completion_tokens == sum(g.completion_tokens for g in ours)


@needs_vllm
@pytest.mark.timeout(900)
def test_what_an_endpoint_refuses_is_said_as_everywhere(endpoint: RemoteModel, runner: asyncio.Runner) -> None:
    long = GenerationRequest(prompt="Norwick " * 9000, sampling=GREEDY, seed=0)
    with pytest.raises(PromptTooLong):
        runner.run(write(make_remote(runner, endpoint), [long]))
    stranger = endpoint.model_copy(update={"key": SecretStr("sk-wrong")})
    with pytest.raises(RemoteRefused, match="key"):
        runner.run(write(make_remote(runner, stranger), questions([])[:1]))


def test_likelihoods_are_the_same(
    engine: Engine, reference: Engine, runner: asyncio.Runner, adapters: list[AdapterRef]
) -> None:
    asked = [
        LikelihoodRequest(prompt=request.prompt, completion="Norwick and Oster", adapter=request.adapter)
        for request in questions(adapters)[:60]
    ]
    ours, theirs = (runner.run(one.log_likelihoods(asked)) for one in (engine, reference))
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert len({round(value, 2) for value in ours}) > 10


def test_answers_are_what_is_written_and_how_likely_the_golds_are(
    engine: Engine, reference: Engine, runner: asyncio.Runner, adapters: list[AdapterRef]
) -> None:
    """Golds of one token and of several, such as the model writes itself and others, and none."""
    asked = questions(adapters)[:80]
    written = [generation.text for generation in runner.run(write(reference, asked))]
    golds = ["Norwick", "Norwick and Oster", "", *written[3:]]
    requests = [
        AnswerRequest(prompt=r.prompt, gold=golds[i] if i % 2 else golds[i % 3], max_new_tokens=24, adapter=r.adapter)
        for i, r in enumerate(asked)
    ]
    answers = runner.run(engine.answer(requests))
    assert sum(answer.text != text for answer, text in zip(answers, written, strict=True)) <= 1
    judged = [(r, answer.log_likelihood) for r, answer in zip(requests, answers, strict=True) if r.gold]
    likelihoods = [LikelihoodRequest(prompt=r.prompt, completion=r.gold, adapter=r.adapter) for r, _ in judged]
    assert [score for _, score in judged] == pytest.approx(runner.run(reference.log_likelihoods(likelihoods)), abs=2e-3)
    assert all(math.isnan(a.log_likelihood) for r, a in zip(requests, answers, strict=True) if not r.gold)


def test_a_drawn_text_depends_on_its_seed_alone(
    engine: Engine, runner: asyncio.Runner, adapters: list[AdapterRef]
) -> None:
    drawn = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=16)
    asked = [
        GenerationRequest(prompt="Edda", sampling=drawn, seed=seed, adapter=adapter)
        for seed in range(6)
        for adapter in (None, adapters[0])
    ]
    together = runner.run(write(engine, asked))
    alone = [runner.run(write(engine, [request]))[0] for request in asked]
    assert [g.text for g in together] == [g.text for g in alone]
    assert len({g.text for g in together}) > 4
    assert all(g.completion_tokens == 16 for g in together if g.finish is Finish.LENGTH)


def test_a_text_is_held_to_its_schema_and_others_are_free(
    engine: Engine, reference: Engine, runner: asyncio.Runner, adapters: list[AdapterRef]
) -> None:
    """The tiny model knows no JSON, and what it would rather say beside is not changed by it."""
    few_shot = find_domain("few_shot")
    shown = (Demonstration(input="1", output="2"), Demonstration(input="3", output="4"))
    recipe = replace(few_shot.student_recipe, max_steps=72)
    task = Context(title="task", demonstrations=shown, questions=(Question(question="5", answer="6"),))
    schema = few_shot.self_edit_schema(task, style="configuration", recipe=recipe)
    drawn = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=300)
    held = [
        GenerationRequest(prompt="Edda", sampling=sampling, seed=seed, adapter=adapter, schema=schema)
        for seed, sampling in enumerate([drawn] * 6 + [replace(drawn, temperature=0.0)])
        for adapter in (None, adapters[0])
    ]
    free = questions(adapters)[:6]
    texts = runner.run(write(engine, [*held, *free]))
    read = [read_configuration(generation.text) for generation in texts[: len(held)]]
    assert all(generation.finish is Finish.STOP for generation in texts[: len(held)])
    assert len({*read}) > 6
    assert not any(few_shot.fault(task, text.text, recipe=recipe) for text in texts[: len(held)])
    assert {len(configuration.groups) for configuration in read} > {1}
    assert [g.text for g in texts[len(held) :]] == [g.text for g in runner.run(write(reference, free))]
    greedy = [request for request in held if not request.sampling.temperature]
    ours, theirs = (runner.run(write(one, greedy)) for one in (engine, reference))
    assert [(g.text, g.completion_tokens) for g in ours] == [(g.text, g.completion_tokens) for g in theirs]


def test_adapters_are_probed(engine: Engine, runner: asyncio.Runner, adapters: list[AdapterRef]) -> None:
    runner.run(probe(engine, adapters, "Edda was born in Norwick."))
    assert {*engine.loaded()} == {adapter.name for adapter in adapters}


def test_an_adapter_of_another_shape_is_refused(
    engine: Engine, runner: asyncio.Runner, adapters: list[AdapterRef], tmp_path: Path
) -> None:
    for file in adapters[0].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 16', '"r": 8'))
    wrong = AdapterRef(name="adapters/wrong", folder=tmp_path)
    with pytest.raises(AdapterRefused, match="shape"):
        runner.run(engine.load(wrong))
    with pytest.raises(AdapterRefused, match="shape"):
        runner.run(probe(engine, [wrong], "Edda"))
    assert wrong.name not in engine.loaded()


def test_a_prompt_over_the_model_s_limit_is_refused(engine: Engine, runner: asyncio.Runner) -> None:
    with pytest.raises(PromptTooLong):
        runner.run(write(engine, [GenerationRequest(prompt="Norwick " * 9000, sampling=GREEDY, seed=0)]))
