"""The openai engine: a model at an OpenAI-compatible endpoint, as a teacher that is not trained or as a judge.

The endpoint has the weights, so there are no adapters and no likelihoods. Retries, with the pauses that the endpoint
asks for, are those of the `openai` package; replies are read here, so that one in another format is an error and no
blank text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from typing import Annotated
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, RateLimitError
from pydantic import BaseModel, Field, ValidationError

from rookery.errors import RookeryError
from rookery_engines.types import (
    AdapterRef,
    Answer,
    AnswerRequest,
    Finish,
    Generation,
    GenerationRequest,
    LikelihoodRequest,
    ModelIdentity,
    Usage,
)
from rookery_shared.errors import (
    EngineCannot,
    ModelNotLoadable,
    PromptTooLong,
    RemoteLimited,
    RemoteMalformed,
    RemoteRefused,
    RemoteUnavailable,
)
from rookery_shared.log import get_logger
from rookery_shared.settings import RemoteModel
from rookery_shared.types import REMOTE_ENGINE

NO_KEY = "none"
"""What is sent to an endpoint that wants no key."""
LONGEST_REASON = 300
"""Characters of an error that are passed on."""
_FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH}


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    finish_reason: str
    text: str | None = None
    """Of `completions`."""
    message: _Message = _Message()
    """Of `chat`."""


class _Tokens(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0


class _Reply(BaseModel):
    """What is read of a reply, in either form."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Tokens
    model: str = ""


class OpenAIEngine:
    """One model at an endpoint."""

    name = REMOTE_ENGINE
    max_adapters = 0
    rounding = 0.5

    def __init__(self, model: str, remote: RemoteModel) -> None:
        """Nothing is asked yet. Raises ModelNotLoadable without an endpoint."""
        if not remote.url:
            raise ModelNotLoadable(f"no endpoint for {model}: its URL is not set", source=model)
        self.identity = ModelIdentity(source=model, revision="")
        self.usage = Usage()
        self._remote = remote
        self._place = f"{model} at {urlsplit(remote.url).netloc.rpartition('@')[2]}"
        self._client = AsyncOpenAI(
            base_url=remote.url,
            api_key=remote.key.get_secret_value() or NO_KEY,
            max_retries=remote.retries,
            timeout=remote.seconds,
        )
        self._slots = asyncio.Semaphore(remote.concurrency)
        self._answering = ""

    async def watch(self) -> None:
        """For ever: an endpoint that is away may come back."""
        await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing runs here."""

    def loaded(self) -> list[str]:
        return []

    def ask(self, text: str) -> str:
        """The text: the endpoint has the chat template."""
        return text

    async def load(self, adapter: AdapterRef) -> None:
        """Raises EngineCannot."""
        raise EngineCannot(f"{self._place} takes no adapters, so it cannot load {adapter.name}", adapter=adapter.name)

    async def log_likelihoods(self, requests: Sequence[LikelihoodRequest]) -> list[float]:
        """Raises EngineCannot."""
        raise EngineCannot(f"{self._place} gives no likelihoods of given texts")

    async def answer(self, requests: Sequence[AnswerRequest]) -> list[Answer]:
        """Raises EngineCannot."""
        raise EngineCannot(f"{self._place} gives no likelihoods of given texts")

    async def generate(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[Generation, None]:
        """As the interface says; the endpoint decides whether a seed gives the same text again.

        Raises EngineCannot for an adapter, PromptTooLong, RemoteRefused, RemoteLimited, RemoteUnavailable or
        RemoteMalformed. The first error stops what has not been answered.
        """
        for request in requests:
            if request.adapter is not None:
                await self.load(request.adapter)
        tasks = [asyncio.ensure_future(self._write(index, request)) for index, request in enumerate(requests)]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            get_logger().info("asked an endpoint", model=self.identity.source, **asdict(self.usage))

    async def _write(self, index: int, request: GenerationRequest) -> Generation:
        async with self._slots:
            reply = self._read(await self._ask(request))
        self._count(reply)
        choice = reply.choices[0]
        return Generation(
            request=index,
            text=self._text(choice),
            finish=_FINISHES[choice.finish_reason],
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
        )

    async def _ask(self, request: GenerationRequest) -> bytes:
        """The body of the reply."""
        sampling = request.sampling
        model, seed = self.identity.source, request.seed % 2**63
        try:
            if self._remote.api == "chat":
                chat = await self._client.chat.completions.with_raw_response.create(
                    model=model,
                    messages=[{"role": "user", "content": request.prompt}],
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=seed,
                )
                return chat.http_response.content
            completion = await self._client.completions.with_raw_response.create(
                model=model,
                prompt=request.prompt,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
            )
            return completion.http_response.content
        except APIStatusError as error:
            raise self._refusal(error) from error
        except APIConnectionError as error:  # a timeout is one
            raise RemoteUnavailable(f"{self._place} does not answer: {error.__cause__ or error}") from error

    def _refusal(self, error: APIStatusError) -> RookeryError:
        """The error for a status, after all retries."""
        if error.status_code == 401:
            return RemoteRefused(f"{self._place} does not accept the key")  # the server may repeat a part of it
        message = f"{self._place} answers {error.status_code}: {self._said(error)}"
        if isinstance(error, RateLimitError):
            return RemoteLimited(message)
        if error.status_code >= 500 or error.status_code in (408, 409):
            return RemoteUnavailable(message)
        if error.code == "context_length_exceeded" or "context length" in error.message:
            return PromptTooLong(message)
        return RemoteRefused(message)

    def _said(self, error: APIStatusError) -> str:
        """What the endpoint says of an error: without the key, and not the request that it may repeat after it."""
        said = error.body.get("message") if isinstance(error.body, dict) else None
        text, key = str(said or error.message), self._remote.key.get_secret_value()
        return (text.replace(key, "...") if key else text)[:LONGEST_REASON]

    def _read(self, body: bytes) -> _Reply:
        try:
            return _Reply.model_validate_json(body)
        except ValidationError as error:
            wrong = ", ".join(".".join(map(str, problem["loc"])) or problem["type"] for problem in error.errors())
            raise RemoteMalformed(f"{self._place} does not reply in OpenAI's format: {wrong}") from None

    def _text(self, choice: _Choice) -> str:
        """Raises RemoteRefused for a text that was withheld, RemoteMalformed for a reply without one."""
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise RemoteRefused(f"{self._place} withholds its answer: {choice.message.refusal or choice.finish_reason}")
        if choice.finish_reason not in _FINISHES:
            raise RemoteMalformed(f"{self._place} ends its text for a reason unknown here: {choice.finish_reason}")
        text = choice.message.content if self._remote.api == "chat" else choice.text
        if text is None and choice.finish_reason != "length":  # all tokens may have gone into reasoning
            raise RemoteMalformed(f"{self._place} replies without a text")
        return text or ""

    def _count(self, reply: _Reply) -> None:
        tokens, prices = reply.usage, self._remote
        cost = tokens.prompt_tokens * prices.prompt_price + tokens.completion_tokens * prices.completion_price
        self.usage = Usage(
            requests=self.usage.requests + 1,
            prompt_tokens=self.usage.prompt_tokens + tokens.prompt_tokens,
            completion_tokens=self.usage.completion_tokens + tokens.completion_tokens,
            cost=self.usage.cost + cost / 1e6,
        )
        if reply.model and reply.model != self._answering:
            self._answering = reply.model
            get_logger().info("the endpoint's model", asked_for=self.identity.source, answers=reply.model)
