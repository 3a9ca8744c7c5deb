"""Requirement 24: a client outlives the servers that it talks to, finds new ones, and has nothing done twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import func, select

from rookery import Client
from rookery.local.ports import free_port
from rookery.transport import call, open_channel
from rookery.v1 import adaptation_service_pb2 as pb
from rookery.v1.adaptation_service_pb2_grpc import AdaptationServiceStub
from rookery.v1.context_pb2 import Question
from rookery_coordinator.database import Database
from rookery_coordinator.tables import Adaptation
from rookery_shared.errors import AddressTaken
from tests.faults.proxy import Proxy, Way
from tests.requirements.removal import Removal
from tests.requirements.serving import TIMEOUT, Light, adaptation_service, serve
from tests.servers.coordinators import STUDENT, TEACHER, CoordinatorProcess, start_coordinators, target_of_all
from tests.servers.dns import start_name_server
from tests.waiting import wait_until

SERVER = "shared/rookery_shared/rpc/server.py"
TRANSPORT = "shared/rookery/transport.py"
REMOVALS = [
    Removal(
        what="calls go to all servers",
        file=TRANSPORT,
        old='{"round_robin": {}}',
        new='{"pick_first": {}}',
        test="test_calls_go_to_all_servers_in_turn",
    ),
    Removal(
        what="calls are repeated when a server is gone",
        file=TRANSPORT,
        old='["UNAVAILABLE", "CANCELLED"]',
        new='["ABORTED", "CANCELLED"]',
        test="test_a_server_that_is_killed_is_not_missed",
    ),
    Removal(
        what="creates have a request id",
        file="shared/rookery/client.py",
        old="return str(uuid.uuid4())",
        new='return ""',
        test="test_a_create_whose_answer_is_lost_is_made_once",
    ),
    Removal(
        what="connections that end in time",
        file=SERVER,
        old="options=(*_OPTIONS, age)",
        new="options=_OPTIONS",
        test="test_a_new_server_is_used_when_connections_have_ended",
    ),
    Removal(
        what="clients that look for servers again soon",
        file=TRANSPORT,
        old='("grpc.dns_min_time_between_resolutions_ms", 2_000)',
        new='("grpc.dns_min_time_between_resolutions_ms", 60_000)',
        test="test_a_new_server_is_used_when_connections_have_ended",
    ),
    Removal(
        what="watches go on after the last event",
        file="shared/rookery/client.py",
        old="self.after, self._lost_since = event.sequence, None",
        new="self._lost_since = None",
        test="test_a_watch_that_is_cut_goes_on_where_it_was",
    ),
    Removal(
        what="watches go on",
        file="shared/rookery/client.py",
        old="if error.code not in _LOST or",
        new="if True or",
        test="test_a_watch_that_is_cut_goes_on_where_it_was",
    ),
    Removal(
        what="so_reuseport off",
        file=SERVER,
        old='("grpc.so_reuseport", 0)',
        new='("grpc.so_reuseport", 1)',
        test="test_two_servers_do_not_share_a_port",
    ),
]


class Named(Light):
    """Says who it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def GetAdaptation(self, request: pb.GetAdaptationRequest, context: Any) -> pb.Adaptation:
        return pb.Adaptation(name=self.name)


def test_calls_go_to_all_servers_in_turn() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(adaptation_service(Named(name)))) for name in "abc"]
        channel = stack.enter_context(open_channel("ipv4:" + ",".join(server.target for server in servers)))
        stub = AdaptationServiceStub(channel)

        def ask() -> str:
            return call(stub.GetAdaptation, pb.GetAdaptationRequest(), seconds=TIMEOUT).name

        wait_until(lambda: {ask() for _ in servers} == {*"abc"}, seconds=TIMEOUT, what="all are connected")
        assert Counter(ask() for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


def test_a_new_server_is_used_when_connections_have_ended() -> None:
    """It has another address, which the name server tells of, and the connections to the old one are good."""
    port = free_port()
    with (
        start_name_server("127.0.0.1") as names,
        serve(adaptation_service(Named("old")), address=f"127.0.0.1:{port}", connection_seconds=0.5),
        open_channel(f"dns://127.0.0.1:{names.port}/rookery.test:{port}") as channel,
    ):
        stub = AdaptationServiceStub(channel)
        asked = [call(stub.GetAdaptation, pb.GetAdaptationRequest()).name]
        with serve(adaptation_service(Named("new")), address=f"127.0.0.2:{port}"):
            names.addresses = ("127.0.0.1", "127.0.0.2")
            end = time.monotonic() + TIMEOUT / 2
            while "new" not in asked and time.monotonic() < end:
                asked.append(call(stub.GetAdaptation, pb.GetAdaptationRequest()).name)
                time.sleep(0.01)
    assert asked[-1] == "new"


def test_two_servers_do_not_share_a_port() -> None:
    with (
        serve(adaptation_service(Named("first"))) as first,
        pytest.raises(AddressTaken, match=first.target),
        serve(adaptation_service(Named("second")), address=first.target),
    ):
        pass


class Counting(Light):
    """A work with many events, one after the other, the last of which ends it."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.asked: list[int] = []

    async def WatchAdaptation(
        self, request: pb.WatchAdaptationRequest, context: Any
    ) -> AsyncIterator[pb.AdaptationEvent]:
        self.asked.append(request.after_sequence)
        for sequence in range(request.after_sequence + 1, self.events + 1):
            yield pb.AdaptationEvent(sequence=sequence, message="x" * 100)
            await asyncio.sleep(0.01)


def test_a_watch_that_is_cut_goes_on_where_it_was() -> None:
    counting, seen = Counting(100), list[int]()
    with serve(adaptation_service(counting)) as server, Proxy(server.target) as proxy, Client(proxy.address) as client:
        for event in client.watch_adaptation("adaptations/it"):
            seen.append(event.sequence)
            match len(seen):
                case 20:
                    proxy.cut()
                case 40:
                    proxy.truncate(200, way=Way.DOWN)  # in the middle of an event
                    threading.Timer(0.5, proxy.heal).start()
    assert seen == [*range(1, 101)]
    assert len(counting.asked) > 2


# --- three real coordinators -----------------------------------------------------------------------------------------

CALLERS = 6


@pytest.fixture(scope="module")
def coordinators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[CoordinatorProcess]]:
    with start_coordinators(3, tmp_path_factory.mktemp("coordinators")) as all_of_them:
        yield all_of_them


@pytest.fixture
def count(coordinators: list[CoordinatorProcess]) -> Iterator[Callable[[], int]]:
    """How many adaptations there are."""
    database = Database(coordinators[0].environment["ROOKERY_DATABASE_URL"])

    def adaptations() -> int:
        with database.read() as session:
            return session.scalar(select(func.count()).select_from(Adaptation)) or 0

    yield adaptations
    database.close()


def create(client: Client) -> str:
    return client.create_adaptation(
        teacher=TEACHER, student=STUDENT, title="T", passage="P", questions=[Question(question="Q?", answer="A")]
    ).name


def test_a_create_whose_answer_is_lost_is_made_once(
    coordinators: list[CoordinatorProcess], count: Callable[[], int]
) -> None:
    """The connection is cut before the answer passes, and healed when the adaptation is there."""
    with (
        Proxy(coordinators[0].target) as proxy,
        Client(proxy.address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        lost = 0
        for before in range(count(), count() + 3):
            [*client.list_profiles()]  # so that it is connected
            proxy.truncate(0, way=Way.DOWN)
            creating = pool.submit(create, client)
            end = time.monotonic() + 2.0
            while count() == before and time.monotonic() < end:
                time.sleep(0.01)
            lost += count() == before + 1
            proxy.heal()
            assert creating.result(TIMEOUT)
            assert count() == before + 1
    assert lost, "at least once it was there before its answer could be"


def test_a_server_that_is_killed_is_not_missed(
    coordinators: list[CoordinatorProcess], count: Callable[[], int]
) -> None:
    before, created = count(), [0] * CALLERS
    going_on = True
    with Client(target_of_all(coordinators)) as client, ThreadPoolExecutor(CALLERS) as pool:

        def ask(i: int) -> None:
            while going_on:
                client.get_adaptation(create(client))
                created[i] += 1

        asking = [pool.submit(ask, i) for i in range(CALLERS)]

        def go_on() -> None:
            so_far = [*created]
            wait_until(
                lambda: any(each.done() for each in asking) or all(map(int.__gt__, created, so_far)),
                seconds=TIMEOUT,
                what="calls go on",
            )

        try:
            go_on()
            coordinators[1].kill()
            go_on()
            go_on()
        finally:
            going_on = False
        for each in asking:
            each.result()
    assert count() - before == sum(created)
