"""The client for asyncio, against coordinators that are killed."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from rookery import AsyncClient, CallFailed, Client, Context
from rookery.v1.adaptation_service_pb2 import STATE_CANCELLED, STATE_RUNNING, Adaptation
from tests.servers.coordinators import STUDENT, TEACHER, CoordinatorProcess, start_coordinators, target_of_all


def asked(number: int) -> Adaptation:
    return Adaptation(teacher=TEACHER, student=STUDENT, context=Context(title=f"Title {number}", passage="Zzz."))


def test_it_has_what_the_other_has() -> None:
    def names(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}

    assert names(AsyncClient) == names(Client)


def test_many_calls_at_once(tmp_path: Path) -> None:
    async def use(target: str) -> None:
        async with AsyncClient(target) as client:
            made = await asyncio.gather(*(client.create_adaptation(asked(i)) for i in range(150)))
            assert len({adaptation.name for adaptation in made}) == 150
            listed = [adaptation.name async for adaptation in client.list_adaptations()]
            assert {*listed} == {adaptation.name for adaptation in made}, "over two pages"
            assert (await client.get_adaptation(listed[0])).state == STATE_RUNNING
            assert [profile.name async for profile in client.list_profiles()] == [TEACHER, STUDENT]
            with pytest.raises(CallFailed, match="there is no") as refused:
                await client.get_adaptation("adaptations/none")
            assert refused.value.code.name == "NOT_FOUND"
            with pytest.raises(CallFailed) as refused:
                await client.create_adaptation(Adaptation(teacher="profiles/none", student=STUDENT))
            assert refused.value.reason

    with start_coordinators(1, tmp_path) as running:
        asyncio.run(use(running[0].target))


def test_a_watch_survives_its_server(tmp_path: Path) -> None:
    async def use(running: list[CoordinatorProcess]) -> None:
        async with AsyncClient(target_of_all(running)) as client:
            made = await client.create_adaptation(asked(1))
            messages: list[str] = []

            async def watch() -> None:
                async for event in client.watch_adaptation(made.name):
                    messages.append(event.message)

            watching = asyncio.create_task(watch())
            while not messages:
                await asyncio.sleep(0.02)
            for victim in running:
                await asyncio.to_thread(victim.kill)
                await client.pause_adaptation(made.name)
                await client.resume_adaptation(made.name)
                await asyncio.to_thread(victim.start)
            ended = await client.cancel_adaptation(made.name)
            await asyncio.wait_for(watching, timeout=60)
            assert ended.state == STATE_CANCELLED
            assert sum("paused" in message for message in messages) == 2
            assert sum("resumed" in message for message in messages) == 2

    with start_coordinators(2, tmp_path) as running:
        asyncio.run(use(running))


def test_what_is_cancelled_ends_its_call(tmp_path: Path) -> None:
    async def use(target: str) -> None:
        async with AsyncClient(target) as client:
            made = await client.create_adaptation(asked(1))
            heard = asyncio.Event()

            async def watch() -> None:
                async for _ in client.watch_adaptation(made.name):
                    heard.set()

            watching = asyncio.create_task(watch())
            await heard.wait()
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching

    with start_coordinators(1, tmp_path) as running:
        asyncio.run(use(running[0].target))
