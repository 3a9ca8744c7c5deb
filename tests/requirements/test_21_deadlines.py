"""Requirement 21: work ends with whoever waits for it, within a second; what a call calls in turn ends with it.

Real engines with a small model, whose texts would take minutes; and light servicers where the engine is not the point.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from rookery.errors import CallFailed
from rookery.transport import call, open_channel
from rookery.v1 import adaptation_service_pb2 as pb
from rookery.v1 import evaluator_service_pb2, teacher_service_pb2
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.context_pb2 import Context, Question
from rookery.v1.evaluator_service_pb2_grpc import EvaluatorServiceStub
from rookery.v1.recipe_pb2 import Sampling
from rookery.v1.teacher_service_pb2_grpc import TeacherServiceStub
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_engines.types import LikelihoodRequest
from rookery_evaluator.scoring import Evaluator
from rookery_evaluator.server import EvaluatorApi
from rookery_shared.store.adapters import AdapterCache
from rookery_shared.store.local import LocalStore
from rookery_teacher.server import TeacherApi
from rookery_teacher.writing import Teacher
from tests.models import random_model, small_tokenizer
from tests.requirements.removal import Removal
from tests.requirements.serving import TIMEOUT, Light, Serving, adaptation_service, serve
from tests.waiting import wait_until

CALLS = "shared/rookery_shared/rpc/calls.py"
REMOVALS = [
    Removal(
        what="decoding stops at the next token",
        file="shared/rookery_engines/transformers.py",
        old="batch, pad=self._pad, stop=self._stop, unwanted=unwanted)",
        new="batch, pad=self._pad, stop=self._stop)",
        test="test_the_work_behind_a_call_ends_within_a_second[teacher-cancelled]",
    ),
    Removal(
        what="the deadline is passed down",
        file=CALLS,
        old="with ends_in(seconds):",
        new="with ends_in(3600.0):",
        test="test_what_a_call_calls_has_no_longer_than_itself",
    ),
    Removal(
        what="a deadline for those who name none",
        file=CALLS,
        old="terms.seconds if left is None else left",
        new="3600.0 if left is None else left",
        test="test_a_call_without_a_deadline_has_its_method_s",
    ),
    Removal(
        what="clients keep to the deadline of the call that they serve",
        file="shared/rookery/transport.py",
        old="    end = time.monotonic() + remaining(seconds)\n    while True:\n        try:\n            return method",
        new="    end = time.monotonic() + seconds\n    while True:\n        try:\n            return method",
        test="test_what_a_call_calls_has_no_longer_than_itself",
    ),
]

POSITIONS = 1 << 16
"""A text as long as this takes minutes."""
WITHIN = 1.0
CANCELS = 1000


@dataclass
class Models:
    """A teacher and an evaluator on one engine."""

    engine: TransformersEngine
    serving: Serving
    steps: list[float] = field(default_factory=list)
    """When the model was asked for a token."""

    def answer_time(self) -> float:
        """What the engine needs for a very small question, in seconds: nothing else may be on its way."""
        started = time.monotonic()
        self.serving.do(self.engine.log_likelihoods([LikelihoodRequest(prompt="\n", completion="a text")]))
        return time.monotonic() - started


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    folder = tmp_path_factory.mktemp("model")
    model = random_model()
    model.config.max_position_embeddings = POSITIONS
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    engine = TransformersEngine(ModelSource(source=str(folder / "model")))
    engine._stop = frozenset()  # no text ends by itself
    cache = AdapterCache(LocalStore(folder / "objects"), folder / "cache")
    teacher = TeacherApi(Teacher(engine, cache), max_new_tokens=POSITIONS).servicer()
    evaluator = EvaluatorApi(Evaluator(engine, cache)).servicer()
    with serve(teacher, evaluator, calls_at_once=CANCELS) as serving:
        found = Models(engine, serving)
        engine._model.model.register_forward_hook(lambda *_: found.steps.append(time.monotonic()))
        yield found


CONTEXT = Context(title="T", passage="P", questions=[Question(question="Q?", answer="A")])


def write(channel: grpc.Channel, **options: Any) -> Any:
    assignment = teacher_service_pb2.GenerateSelfEditsRequest.Assignment(context=CONTEXT, seeds=[1, 2])
    request = teacher_service_pb2.GenerateSelfEditsRequest(
        adapter="base", assignments=[assignment], sampling=Sampling(max_new_tokens=POSITIONS // 2)
    )
    return TeacherServiceStub(channel).GenerateSelfEdits(request, **options)


def score(channel: grpc.Channel, **options: Any) -> Any:
    item = evaluator_service_pb2.ScoreRequest.Item(adapter="base", context=CONTEXT)
    request = evaluator_service_pb2.ScoreRequest(items=[item], max_new_tokens=POSITIONS // 2)
    return EvaluatorServiceStub(channel).Score(request, **options)


@pytest.mark.parametrize("how", ["cancelled", "late", "gone"])
@pytest.mark.parametrize("ask", [write, score], ids=["teacher", "evaluator"])
def test_the_work_behind_a_call_ends_within_a_second(models: Models, ask: Callable[..., Any], how: str) -> None:
    before = len(models.steps)
    channel = open_channel(models.serving.target)
    started = time.monotonic()
    responses = ask(channel, timeout=0.5 if how == "late" else TIMEOUT)
    wait_until(lambda: len(models.steps) > before + 10, seconds=TIMEOUT, what="the model is at work")
    if how == "cancelled":
        responses.cancel()
    elif how == "gone":
        channel.close()
    with pytest.raises((grpc.RpcError, StopIteration)):
        next(responses)
    ended = started + 0.5 if how == "late" else time.monotonic()
    models.answer_time()
    *_, last, _ = models.steps  # the very last is that answer's
    assert last - ended < WITHIN
    channel.close()


def test_a_thousand_cancelled_calls_leave_nothing_behind(models: Models) -> None:
    with open_channel(models.serving.target) as channel:
        models.answer_time()
        threads = {thread.name for thread in threading.enumerate()}
        tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208  # it is no folder of ours
        for i in range(CANCELS):
            responses = write(channel, timeout=TIMEOUT)
            if i % 10 == 0:
                time.sleep(0.01)  # so that some have begun
            responses.cancel()
        assert models.answer_time() < 5 * WITHIN
        steps = len(models.steps)
        models.answer_time()
        assert len(models.steps) <= steps + 2, "nobody else asks the model for anything"
        new = {thread.name for thread in threading.enumerate()} - threads
        assert not new
        assert len(os.listdir("/proc/self/task")) < tasks + 20  # noqa: PTH208  # gRPC's own come and go


# --- without an engine -----------------------------------------------------------------------------------------------


class Downstream(Light):
    """Knows how long its callers wait."""

    left: float

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: Any) -> pb.Adaptation:
        self.left = context.time_remaining()
        return pb.Adaptation()

    async def CancelAdaptation(self, request: pb.CancelAdaptationRequest, context: Any) -> pb.Adaptation:
        await asyncio.sleep(TIMEOUT)
        return pb.Adaptation()


class Upstream(Light):
    """Asks another service."""

    def __init__(self, stub: AdaptationServiceStub) -> None:
        self._stub = stub

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: Any) -> pb.Adaptation:
        return await asyncio.to_thread(call, self._stub.GetAdaptation, request)


@dataclass
class Chain:
    downstream: Downstream
    below: AdaptationServiceStub
    above: AdaptationServiceStub


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    downstream = Downstream()
    short = {"GetAdaptation": 3.0, "CancelAdaptation": 0.2}
    with (
        serve(adaptation_service(downstream, seconds=short)) as below,
        open_channel(below.target) as channel,
        serve(adaptation_service(Upstream(AdaptationServiceStub(channel)), seconds=short)) as above,
        open_channel(above.target) as channel_above,
    ):
        yield Chain(downstream, AdaptationServiceStub(channel), AdaptationServiceStub(channel_above))


def test_what_a_call_calls_has_no_longer_than_itself(chain: Chain) -> None:
    chain.above.GetAdaptation(pb.GetAdaptationRequest(), timeout=10.0)
    assert 0 < chain.downstream.left < 11.0
    chain.above.GetAdaptation(pb.GetAdaptationRequest())
    assert 0 < chain.downstream.left < 4.0, "what its method has by itself"
    call(chain.below.GetAdaptation, pb.GetAdaptationRequest(), seconds=20.0)
    assert 10.0 < chain.downstream.left < 21.0


def test_a_call_without_a_deadline_has_its_method_s(chain: Chain) -> None:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        chain.below.CancelAdaptation(pb.CancelAdaptationRequest())
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < TIMEOUT / 2


def test_a_call_that_comes_too_late_is_not_made(chain: Chain) -> None:
    with pytest.raises(CallFailed) as caught:
        call(chain.below.GetAdaptation, pb.GetAdaptationRequest(), seconds=0.0)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
