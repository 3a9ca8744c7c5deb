"""Requirement 23: beyond its limit a server refuses calls and says when to try again; those it takes go on as ever.

There are no tenants in this release, and so no fairness among them: a server takes calls in the order in which they
come, whoever they are from.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rookery import Client
from rookery.errors import CallFailed, from_rpc
from rookery.transport import call, open_channel, stream
from rookery.v1 import adaptation_service_pb2 as pb
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.context_pb2 import Question
from rookery_shared.errors import Overloaded
from tests.requirements.removal import Removal
from tests.requirements.serving import TIMEOUT, Light, adaptation_service, serve
from tests.servers.coordinators import STUDENT, TEACHER, CoordinatorProcess, start_coordinators

CALLS = "shared/rookery_shared/rpc/calls.py"
REMOVALS = [
    Removal(
        what="the limit of calls in flight",
        file=CALLS,
        old="if len(calls) >= self._most[watch]:",
        new="if False:",
        test="test_ten_times_the_load_is_done_in_the_end_and_never_at_once",
    ),
    Removal(
        what="health beside the calls",
        file=CALLS,
        old="if handler is None or terms is None:",
        new="terms = terms or Terms(seconds=1.0, watch=False)\n        if handler is None:",
        test="test_health_is_always_answered",
    ),
    Removal(
        what="RetryInfo",
        file="shared/rookery/errors.py",
        old="        if self.retry_seconds:\n",
        new="        if False:\n",
        test="test_a_refusal_says_when_to_try_again",
    ),
    Removal(
        what="the client's patience",
        file="shared/rookery/transport.py",
        old="if not pause or time.monotonic() + pause >= end:",
        new="if True:",
        test="test_ten_times_the_load_is_done_in_the_end_and_never_at_once",
    ),
    Removal(
        what="watchers apart from calls",
        file="services/rookery_coordinator/server.py",
        old='watches=frozenset({"WatchAdaptation"}),',
        new="watches=frozenset(),",
        test="test_watchers_leave_room",
    ),
    Removal(
        what="one look for all watchers",
        file="services/rookery_coordinator/api/watching.py",
        old="await waiter.heard\n",
        new="await asyncio.sleep(self._seconds)\n",
        test="test_watchers_leave_room",
    ),
    Removal(
        what="the bound of memory",
        file=CALLS,
        old="if len(calls) >= self._most[watch]:",
        new="if False:",
        test="test_memory_is_bounded_whatever_comes",
    ),
]

AT_ONCE = 4
SECONDS = 0.05
"""That a call takes."""


class Slow(Light):
    """Knows how many are asked at once, and how long each takes."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.took: list[float] = []
        self.gate = threading.Event()
        self.gate.set()

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: Any) -> pb.Adaptation:
        started = time.monotonic()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(SECONDS)
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
        finally:
            self.now -= 1
            self.took.append(time.monotonic() - started)
        return pb.Adaptation(name=request.name)

    async def WatchAdaptation(
        self, request: pb.WatchAdaptationRequest, context: Any
    ) -> AsyncIterator[pb.AdaptationEvent]:
        await self.GetAdaptation(pb.GetAdaptationRequest(), context)
        yield pb.AdaptationEvent(sequence=1)


def test_ten_times_the_load_is_done_in_the_end_and_never_at_once() -> None:
    """All callers come back when they are told to, until they are served; nobody waits in a queue of the server."""
    slow = Slow()
    with (
        serve(adaptation_service(slow), calls_at_once=AT_ONCE) as server,
        open_channel(server.target) as channel,
        ThreadPoolExecutor(10 * AT_ONCE) as pool,
    ):
        stub = AdaptationServiceStub(channel)

        def ask(i: int) -> None:
            if i % 2:
                call(stub.GetAdaptation, pb.GetAdaptationRequest(), seconds=TIMEOUT)
            else:
                [*stream(stub.WatchAdaptation, pb.WatchAdaptationRequest(), seconds=TIMEOUT)]

        [*pool.map(ask, range(10 * AT_ONCE))]
    assert slow.most == AT_ONCE
    assert len(slow.took) == 10 * AT_ONCE
    assert sorted(slow.took)[len(slow.took) // 2] < 4 * SECONDS, "those that are taken do not wait for the others"


def blocked(stub: AdaptationServiceStub, slow: Slow) -> Sequence[grpc.Future[pb.Adaptation]]:
    """Calls that take all places."""
    slow.gate.clear()
    waiting = [stub.GetAdaptation.future(pb.GetAdaptationRequest(), timeout=TIMEOUT) for _ in range(AT_ONCE)]
    while slow.now < AT_ONCE:
        time.sleep(0.01)
    return waiting


@pytest.fixture
def full() -> Iterator[grpc.Channel]:
    """A channel to a server that has no place left."""
    slow = Slow()
    with serve(adaptation_service(slow), calls_at_once=AT_ONCE) as server, open_channel(server.target) as channel:
        waiting = blocked(AdaptationServiceStub(channel), slow)
        yield channel
        slow.gate.set()
        for each in waiting:
            each.result()


def test_a_refusal_says_when_to_try_again(full: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        AdaptationServiceStub(full).GetAdaptation(pb.GetAdaptationRequest(), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    metadata: Any = caught.value.trailing_metadata()
    status = status_pb2.Status.FromString(dict(metadata)["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == Overloaded.reason
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == Overloaded.retry_seconds * 1000


def test_nobody_waits_beyond_the_deadline(full: grpc.Channel) -> None:
    started = time.monotonic()
    with pytest.raises(CallFailed) as caught:
        call(AdaptationServiceStub(full).GetAdaptation, pb.GetAdaptationRequest(), seconds=0.2)
    assert caught.value.reason == Overloaded.reason
    assert time.monotonic() - started < Overloaded.retry_seconds


def test_health_is_always_answered(full: grpc.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(full)
    for _ in range(2 * AT_ONCE):
        response = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert response.status == health_pb2.HealthCheckResponse.SERVING


# --- a real coordinator ----------------------------------------------------------------------------------------------

LIMIT = 4
WATCHERS = int(os.environ.get("ROOKERY_WATCHERS", "300"))
"""Many more than there are places for calls. As many thousands take as many times as long to come."""
CALLERS = 50 * LIMIT
"""Each asks again as soon as it is answered or refused."""


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoordinatorProcess]:
    folder = tmp_path_factory.mktemp("coordinator")
    with start_coordinators(1, folder, ROOKERY_CALLS_AT_ONCE=str(LIMIT)) as [only]:
        yield only


@pytest.fixture(scope="module")
def adaptation(coordinator: CoordinatorProcess) -> str:
    with Client(coordinator.target) as client:
        made = client.create_adaptation(
            teacher=TEACHER, student=STUDENT, title="T", passage="P", questions=[Question(question="Q?", answer="A")]
        )
        return made.name


def test_watchers_leave_room(coordinator: CoordinatorProcess, adaptation: str) -> None:
    """They cost the coordinator next to nothing while nothing happens, and all hear of what does."""
    process = psutil.Process(coordinator.process.pid)

    async def watch_all() -> float:
        async with grpc.aio.insecure_channel(coordinator.target) as channel:
            stub: Any = AdaptationServiceStub(channel)
            watches = [stub.WatchAdaptation(pb.WatchAdaptationRequest(name=adaptation)) for _ in range(WATCHERS)]
            for watch in watches:
                assert (await watch.read()).sequence > 0
            before = process.cpu_times().user
            await asyncio.sleep(1.5)
            spent = process.cpu_times().user - before
            assert (await stub.GetAdaptation(pb.GetAdaptationRequest(name=adaptation), timeout=TIMEOUT)).name
            await stub.CancelAdaptation(pb.CancelAdaptationRequest(name=adaptation), timeout=TIMEOUT)
            for watch in watches:
                while (event := await watch.read()) is not grpc.aio.EOF:
                    last = event.message
                assert last == "cancelled"
            return spent

    assert asyncio.run(watch_all()) < 0.3


def test_memory_is_bounded_whatever_comes(coordinator: CoordinatorProcess, adaptation: str) -> None:
    """Many times as many callers as there are places, none of whom waits before asking again."""
    process = psutil.Process(coordinator.process.pid)
    outcomes: Counter[str] = Counter()

    async def ask_on(stub: Any, end: float) -> None:
        while time.monotonic() < end:
            try:
                await stub.GetAdaptation(pb.GetAdaptationRequest(name=adaptation), timeout=TIMEOUT)
                outcomes["answered"] += 1
            except grpc.aio.AioRpcError as error:
                outcomes[from_rpc(error).reason] += 1

    async def overload(seconds: float) -> None:
        async with grpc.aio.insecure_channel(coordinator.target) as channel:
            stub = AdaptationServiceStub(channel)
            await asyncio.gather(*(ask_on(stub, time.monotonic() + seconds) for _ in range(CALLERS)))

    asyncio.run(overload(0.5))
    before = process.memory_info().rss
    asyncio.run(overload(2.0))
    grown = process.memory_info().rss - before
    assert {*outcomes} == {"answered", Overloaded.reason}
    assert grown < 32 * 2**20
