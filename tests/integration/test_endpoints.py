"""The openai engine against a server over HTTP: what it asks, what it waits for, what it refuses and what it counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from rookery_engines.base import Metered
from rookery_engines.connect import make_engine
from rookery_engines.models import ModelSource
from rookery_engines.openai import OpenAIEngine
from rookery_engines.transformers import TransformersEngine
from rookery_engines.types import AdapterRef, AnswerRequest, Finish, Generation, GenerationRequest, LikelihoodRequest
from rookery_shared import log
from rookery_shared.errors import (
    EngineCannot,
    ModelNotLoadable,
    PromptTooLong,
    RemoteLimited,
    RemoteMalformed,
    RemoteRefused,
    RemoteUnavailable,
)
from rookery_shared.settings import RemoteModel
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.store.local import LocalStore
from rookery_shared.types import Sampling
from rookery_teacher.server import TeacherApi
from rookery_teacher.settings import TeacherSettings
from rookery_teacher.writing import Teacher
from tests.bench.shapes import TINY
from tests.servers.openai import Asked, OpenAIServer, Said, Trouble, start_openai

KEY = "sk-hush"


def echo(asked: Asked) -> Said:
    return Said(text=f"said: {asked.prompt}")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with start_openai(echo) as running:
        yield running


def remote(server: OpenAIServer, **changes: Any) -> RemoteModel:
    return RemoteModel.model_validate({"url": server.url, "key": KEY, "retries": 2, "seconds": 20, **changes})


def request(prompt: str = "Edda", **changes: Any) -> GenerationRequest:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=24)
    return GenerationRequest(**{"prompt": prompt, "sampling": sampling, "seed": 7, **changes})


async def write(engine: OpenAIEngine, *requests: GenerationRequest) -> list[Generation]:
    return sorted([g async for g in engine.generate(requests)], key=lambda generation: generation.request)


def ask(remote: RemoteModel, *requests: GenerationRequest) -> list[Generation]:
    async def inside() -> list[Generation]:
        return await write(OpenAIEngine("gpt", remote), *(requests or (request(),)))

    return asyncio.run(inside())


def test_a_prompt_is_sent_as_a_message_or_as_it_is(server: OpenAIServer) -> None:
    [chat] = ask(remote(server))
    [plain] = ask(remote(server, api="completions"))
    assert chat.text == plain.text == "said: Edda"
    assert (chat.finish, chat.prompt_tokens, chat.completion_tokens) == (Finish.STOP, 10, 5)
    one, other = server.asked
    assert (one.path, other.path) == ("/v1/chat/completions", "/v1/completions")
    assert one.body["messages"] == [{"role": "user", "content": "Edda"}]
    assert other.body["prompt"] == "Edda"
    for asked in server.asked:
        assert asked.key == KEY
        drawn = {name: asked.body[name] for name in ("model", "temperature", "top_p", "max_tokens", "seed")}
        assert drawn == {"model": "gpt", "temperature": 0.5, "top_p": 0.9, "max_tokens": 24, "seed": 7}


def test_greedy_texts_are_those_of_the_model_behind_the_endpoint() -> None:
    local = TransformersEngine(ModelSource(source=str(TINY)))
    greedy = Sampling(temperature=0.0, max_new_tokens=16)
    requests = [request(f"Let's answer a question.\nQuestion: {n}\nAnswer:\n", sampling=greedy) for n in "abcdef"]

    async def write_here(*asked: GenerationRequest) -> list[Generation]:
        return sorted([g async for g in local.generate(asked)], key=lambda generation: generation.request)

    def answer(asked: Asked) -> Said:
        [one] = asyncio.run(write_here(request(asked.prompt, sampling=greedy)))
        return Said(text=one.text, finish=one.finish.value, prompt_tokens=one.prompt_tokens)

    with start_openai(answer) as server:
        remotely = ask(remote(server, api="completions"), *requests)
    here = asyncio.run(write_here(*requests))
    assert [(g.text, g.finish, g.prompt_tokens) for g in remotely] == [
        (g.text, g.finish, g.prompt_tokens) for g in here
    ]


def test_a_cut_text_is_said_to_be_cut(server: OpenAIServer) -> None:
    server.answer = lambda asked: Said(text="long", finish="length")
    assert ask(remote(server))[0].finish is Finish.LENGTH
    server.answer = lambda asked: Said(text=None, finish="length")
    assert ask(remote(server))[0].text == "", "all tokens went into reasoning"


def test_a_rate_limit_is_waited_for_as_long_as_the_server_says(server: OpenAIServer) -> None:
    server.troubles.append(Trouble(status=429, headers={"Retry-After": "2"}))
    assert ask(remote(server))[0].text == "said: Edda"
    first, second = server.asked
    assert 1.9 < second.time - first.time < 5
    server.troubles.extend([Trouble(status=429, headers={"Retry-After": "0.01"})] * 3)
    with pytest.raises(RemoteLimited, match="429"):
        ask(remote(server))
    assert len(server.asked) == 2 + 3


def test_errors_of_the_server_are_retried(server: OpenAIServer) -> None:
    server.troubles.extend([Trouble(status=500), Trouble(status=503, headers={"Retry-After": "0.01"})])
    assert ask(remote(server))[0].text == "said: Edda"
    assert len(server.asked) == 3
    server.troubles.extend([Trouble(status=502, body="<html>", headers={"Retry-After": "0.01"})] * 3)
    with pytest.raises(RemoteUnavailable, match="502"):
        ask(remote(server))


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_refusal_is_not_retried_and_does_not_show_the_key(server: OpenAIServer, status: int) -> None:
    server.troubles.append(Trouble(status=status, body=f'{{"error": {{"message": "not with {KEY}"}}}}'))
    with pytest.raises(RemoteRefused) as raised:
        ask(remote(server))
    assert KEY not in str(raised.value)
    assert len(server.asked) == 1


def test_a_prompt_over_the_limit_is_refused_as_everywhere(server: OpenAIServer) -> None:
    message = "This model's maximum context length is 8192 tokens."
    server.troubles.append(Trouble(status=400, body=f'{{"error": {{"message": "{message}"}}}}'))
    with pytest.raises(PromptTooLong, match="8192"):
        ask(remote(server))


def test_nobody_there_and_nobody_answering_are_unavailable(server: OpenAIServer) -> None:
    with pytest.raises(RemoteUnavailable):
        ask(RemoteModel(url="http://127.0.0.1:9/v1", retries=1))

    def sleep(asked: Asked) -> Said:
        time.sleep(1)
        return echo(asked)

    server.answer = sleep
    with pytest.raises(RemoteUnavailable):
        ask(remote(server, seconds=0.2, retries=0))


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("<html>", "json"),
        ("[]", "model_type"),
        ('{"error": {"message": "busy"}}', "choices, usage"),
        ('{"choices": [], "usage": {"prompt_tokens": 1}}', "choices"),
        ('{"choices": [{"finish_reason": "stop", "message": {"content": "x"}}]}', "usage"),
        ('{"choices": [{"finish_reason": "stop", "message": {}}], "usage": {"prompt_tokens": 1}}', "without a text"),
        ('{"choices": [{"finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 1}}', "tool_calls"),
    ],
)
def test_a_reply_in_another_format_is_an_error_and_no_blank_text(server: OpenAIServer, body: str, wrong: str) -> None:
    server.troubles.append(Trouble(status=200, body=body))
    with pytest.raises(RemoteMalformed, match=wrong):
        ask(remote(server))


def test_a_withheld_text_is_an_error_and_no_blank_text(server: OpenAIServer) -> None:
    server.answer = lambda asked: Said(text="", finish="content_filter")
    with pytest.raises(RemoteRefused, match="content_filter"):
        ask(remote(server))


def test_no_more_requests_at_once_than_allowed(server: OpenAIServer) -> None:
    def slowly(asked: Asked) -> Said:
        time.sleep(0.05)
        return echo(asked)

    server.answer = slowly
    texts = ask(remote(server, concurrency=3), *(request(str(n)) for n in range(12)))
    assert [g.text for g in texts] == [f"said: {n}" for n in range(12)]
    assert server.most_at_once == 3


def test_the_first_error_stops_the_rest(server: OpenAIServer) -> None:
    server.troubles.append(Trouble(status=403))
    with pytest.raises(RemoteRefused):
        ask(remote(server, concurrency=1), *(request(str(n)) for n in range(50)))
    assert len(server.asked) < 5


def test_tokens_and_money_are_counted_and_shown(server: OpenAIServer, tmp_path: Path) -> None:
    server.answer = lambda asked: Said(text="x", prompt_tokens=1_000, completion_tokens=100)

    async def inside() -> OpenAIEngine:
        engine = OpenAIEngine("gpt", remote(server, prompt_price=2.0, completion_price=8.0))
        await write(engine, request(), request())
        return engine

    engine = asyncio.run(inside())
    assert isinstance(engine, Metered)
    assert not isinstance(TransformersEngine, Metered)
    assert (engine.usage.requests, engine.usage.prompt_tokens, engine.usage.completion_tokens) == (2, 2_000, 200)
    assert engine.usage.cost == pytest.approx(2 * (1_000 * 2.0 + 100 * 8.0) / 1e6)
    teacher = Teacher(engine, AdapterCache(LocalStore(tmp_path), tmp_path))
    state = asyncio.run(TeacherApi(teacher, max_new_tokens=8).GetServingState(None, None))  # type: ignore[arg-type]
    assert (state.base_model, state.engine, state.usage.prompt_tokens) == ("gpt", "openai", 2_000)
    assert state.usage.cost == pytest.approx(engine.usage.cost)


def test_nothing_but_writing_can_be_asked(server: OpenAIServer, tmp_path: Path) -> None:
    adapter = AdapterRef(name="adapters/0", folder=tmp_path)

    async def inside() -> None:
        engine = OpenAIEngine("gpt", remote(server))
        with pytest.raises(EngineCannot, match="adapters/0"):
            await engine.load(adapter)
        with pytest.raises(EngineCannot, match="adapters/0"):
            await write(engine, request(), request(adapter=adapter))
        with pytest.raises(EngineCannot, match="likelihood"):
            await engine.log_likelihoods([LikelihoodRequest(prompt="a", completion="b")])
        with pytest.raises(EngineCannot, match="likelihood"):
            await engine.answer([AnswerRequest(prompt="a", gold="b", max_new_tokens=1)])

    asyncio.run(inside())
    assert not server.asked
    assert not OpenAIEngine("gpt", remote(server)).loaded()


def test_a_profile_without_an_endpoint_does_not_load() -> None:
    with pytest.raises(ModelNotLoadable, match="URL"):
        make_engine("openai", ModelSource(source="gpt"))


@pytest.fixture
def all_logs(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What is logged from here on, at any level."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    log.configure(service="test", level="DEBUG", style="text")
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_the_key_comes_from_the_settings_and_is_not_logged(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, all_logs: Callable[[], str]
) -> None:
    monkeypatch.setenv("ROOKERY_PROFILE", "profiles/x")
    monkeypatch.setenv("ROOKERY_OPENAI_URL", server.url)
    monkeypatch.setenv("ROOKERY_OPENAI_KEY", KEY)
    monkeypatch.setenv("ROOKERY_OPENAI_PROMPT_PRICE", "2.5")
    settings = TeacherSettings()  # type: ignore[call-arg]  # its fields come from the environment
    assert settings.openai.prompt_price == 2.5
    assert KEY not in repr(settings)
    ask(settings.openai)
    assert server.asked[0].key == KEY
    logged = all_logs()
    assert "asked an endpoint" in logged
    assert KEY not in logged
