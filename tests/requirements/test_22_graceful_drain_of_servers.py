"""Requirement 22, servers: one that is told to stop says so first, ends what it has begun, and no client notices."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rookery import Client
from rookery.errors import CallFailed
from rookery.transport import call, open_channel
from rookery.v1 import adaptation_service_pb2 as pb
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.context_pb2 import Question
from tests.requirements.removal import Removal
from tests.requirements.serving import TIMEOUT, Light, adaptation_service, serve
from tests.servers.coordinators import STUDENT, TEACHER, CoordinatorProcess, start_coordinators, target_of_all
from tests.servers.redis import start_redis

SERVER = "shared/rookery_shared/rpc/server.py"
REMOVALS = [
    Removal(
        what="NOT_SERVING before anything else",
        file=SERVER,
        old="        await self._health.enter_graceful_shutdown()\n",
        new="",
        test="test_what_has_begun_is_ended_after_the_health_says_no",
    ),
    Removal(
        what="calls in flight end by themselves",
        file=SERVER,
        old="        await self._calls.idle(seconds=self._drain_seconds)\n",
        new="",
        test="test_what_has_begun_is_ended_after_the_health_says_no",
    ),
    Removal(
        what="calls that no server has taken up are repeated",
        file="shared/rookery/transport.py",
        old='["UNAVAILABLE", "CANCELLED"]',
        new='["UNAVAILABLE"]',
        test="test_calls_that_wait_to_be_taken_up_are_answered_elsewhere",
    ),
    Removal(
        what="nobody waits for watchers",
        file="shared/rookery_shared/rpc/calls.py",
        old="while self._in_flight[False] and",
        new="while (self._in_flight[False] or self._in_flight[True]) and",
        test="test_a_replica_stops_under_load_and_nobody_notices",
    ),
    Removal(
        what="clients take a watch up where it was ended",
        file="shared/rookery/client.py",
        old="for event in stream(method, request(watch.after), seconds=WATCH_SECONDS):",
        new="for event in stream(method, request(0), seconds=WATCH_SECONDS):",
        test="test_a_replica_stops_under_load_and_nobody_notices",
    ),
]

SECONDS = 2.0
"""That a call takes: longer than what is not waited for."""
CALLERS = 4
DRAIN = 20.0


class Slow(Light):
    def __init__(self) -> None:
        self.begun = threading.Event()

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: Any) -> pb.Adaptation:
        self.begun.set()
        await asyncio.sleep(SECONDS)
        return pb.Adaptation(name=request.name)


def test_what_has_begun_is_ended_after_the_health_says_no() -> None:
    slow = Slow()
    with serve(adaptation_service(slow)) as server, open_channel(server.target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        seen: list[int] = []
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        seen.append(next(watch).status)
        future = AdaptationServiceStub(channel).GetAdaptation.future(
            pb.GetAdaptationRequest(name="it"), timeout=TIMEOUT
        )
        assert slow.begun.wait(TIMEOUT)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        seen.append(next(watch).status)
        assert not future.done(), "the load balancer knows before the last call has ended"
        with grpc.insecure_channel(server.target) as new, pytest.raises(grpc.RpcError) as caught:
            AdaptationServiceStub(new).GetAdaptation(pb.GetAdaptationRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert future.result().name == "it"
        stopping.join()
    assert seen == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


def test_who_takes_too_long_is_told_that_the_server_stops() -> None:
    slow = Slow()
    with serve(adaptation_service(slow), drain_seconds=0.1) as server, grpc.insecure_channel(server.target) as channel:
        future = AdaptationServiceStub(channel).GetAdaptation.future(pb.GetAdaptationRequest(), timeout=TIMEOUT)
        assert slow.begun.wait(TIMEOUT)
        server.stop()
        with pytest.raises(CallFailed) as caught:
            call(lambda *_, **__: future.result(), None)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


class Busy(Light):
    """Others wait meanwhile, not yet taken up: gRPC's servers cancel them when they stop."""

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: Any) -> pb.Adaptation:
        time.sleep(0.02)
        return pb.Adaptation(name=request.name)


def test_calls_that_wait_to_be_taken_up_are_answered_elsewhere() -> None:
    over = threading.Event()
    with (
        serve(adaptation_service(Busy())) as one,
        serve(adaptation_service(Busy())) as other,
        open_channel(f"ipv4:{one.target},{other.target}") as channel,
        ThreadPoolExecutor(8 * CALLERS) as pool,
    ):
        stub = AdaptationServiceStub(channel)

        def ask() -> int:
            count = 0
            while not over.is_set():
                call(stub.GetAdaptation, pb.GetAdaptationRequest(name="it"))
                count += 1
            return count

        asking = [pool.submit(ask) for _ in range(8 * CALLERS)]
        try:
            time.sleep(1.0)
            one.stop()
            time.sleep(1.0)
        finally:
            over.set()
        assert all(each.result() for each in asking)


def test_a_server_that_still_loads_ends_at_once() -> None:
    code = (
        "import time\n"
        "from rookery_shared.rpc.server import run_service\n"
        "async def load():\n"
        "    print('loading', flush=True)\n"
        "    time.sleep(60)\n"
        "run_service(load())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.terminate()
        assert process.wait(TIMEOUT) == 128 + signal.SIGTERM


# --- two real coordinators -------------------------------------------------------------------------------------------


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[CoordinatorProcess]]:
    """With a broker: a relay that cannot reach one keeps its process for some seconds after the server has stopped."""
    with (
        start_redis(tmp_path) as broker,
        start_coordinators(2, tmp_path, ROOKERY_BROKER_URL=broker.url, ROOKERY_DRAIN_SECONDS=str(DRAIN)) as both,
    ):
        yield both


def create(client: Client) -> str:
    return client.create_adaptation(
        teacher=TEACHER, student=STUDENT, title="T", passage="P", questions=[Question(question="Q?", answer="A")]
    ).name


def test_a_replica_stops_under_load_and_nobody_notices(replicas: list[CoordinatorProcess]) -> None:
    """Callers read and create all the time, and some watch: all of it goes on with the other replica."""
    done = [0] * CALLERS
    going_on = True

    with Client(target_of_all(replicas)) as client, ThreadPoolExecutor(2 * CALLERS) as pool:

        def ask(i: int) -> None:
            while going_on:
                client.get_adaptation(create(client))
                done[i] += 1

        def watch() -> list[int]:
            return [event.sequence for event in client.watch_adaptation(watched)]

        watched = create(client)
        watching = [pool.submit(watch) for _ in range(CALLERS)]  # half of them at either replica
        asking = [pool.submit(ask, i) for i in range(CALLERS)]

        def go_on(count: int) -> None:
            before = [*done]
            end = time.monotonic() + TIMEOUT
            while any(now < then + count for now, then in zip(done, before, strict=True)):
                assert time.monotonic() < end
                for each in asking:
                    assert not each.done() or each.result(), "a call that failed is raised here"
                time.sleep(0.01)

        try:
            go_on(3)
            started = time.monotonic()
            assert replicas[0].stop() == 0
            assert time.monotonic() - started < DRAIN, "it does not wait for those who watch"
            go_on(3)
        finally:
            going_on = False
            client.cancel_adaptation(watched)
        for each in asking:
            each.result()
        sequences = [each.result() for each in watching]
        everything = [event.sequence for event in client.watch_adaptation(watched)]
    assert len({*everything}) == len(everything)
    assert sequences == [everything] * CALLERS, "no event is lost, and none comes twice"
