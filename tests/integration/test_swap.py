"""A teacher's policy is changed while it writes: no call fails, and every text is by the policy that it names."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from rookery.v1 import context_pb2
from rookery.v1 import teacher_service_pb2 as pb
from rookery.v1.recipe_pb2 import Sampling
from rookery.v1.teacher_service_pb2_grpc import TeacherServiceStub
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_shared.rpc.server import RpcServer
from rookery_shared.settings import ServerSettings
from rookery_shared.store.adapters import AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.local import LocalStore
from rookery_shared.types import ALL_LINEAR, Example, LoraRecipe
from rookery_teacher.server import TeacherApi
from rookery_teacher.writing import Teacher
from rookery_training.batch import AdapterTask, BatchTrainer
from tests.models import random_model, small_tokenizer

WORDS = ("Norwick", "stone", "baker")
"""What each policy writes, and the others do not."""
ACTIVATIONS, CALLERS = 20, 4
REQUEST = pb.GenerateSelfEditsRequest(
    assignments=[
        pb.GenerateSelfEditsRequest.Assignment(
            context=context_pb2.Context(title="Edda", passage="Edda was born in Oster."), seeds=[1, 2]
        )
    ],
    sampling=Sampling(max_new_tokens=12, temperature=0.0),
)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def policies(store: LocalStore, model_folder: Path, tmp_path: Path) -> dict[str, str]:
    """Each one's word by its name."""
    recipe = LoraRecipe(rank=4, alpha=16, targets=(ALL_LINEAR,), epochs=40, learning_rate=2e-2)
    tasks = [
        AdapterTask(
            key=word, examples=[Example(completion=f"{word} " * 12)], recipe=recipe, seed=i, out=tmp_path / word
        )
        for i, word in enumerate(WORDS)
    ]
    assert not any(outcome.failure for outcome in BatchTrainer(random_model(), small_tokenizer()).train(tasks))
    origin = Origin(base_model=str(model_folder), base_revision="", rank=4, job="j", epoch=1, seed=0)
    return {adapter_name(publish(store, task.out, origin).digest): task.key for task in tasks}


def swap(stub: TeacherServiceStub, policies: dict[str, str]) -> list[pb.GenerateSelfEditsResponse]:
    """Callers ask all the time while one policy after the other is made the active one."""
    written: list[pb.GenerateSelfEditsResponse] = []
    swapping = True

    def keep_asking() -> None:
        while swapping:
            written.extend(stub.GenerateSelfEdits(REQUEST))

    names = [*policies]
    stub.ActivatePolicy(pb.ActivatePolicyRequest(adapter=names[0]))
    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(keep_asking) for _ in range(CALLERS)]
        try:
            for i in range(1, ACTIVATIONS + 1):
                before = len(written)
                state = stub.ActivatePolicy(pb.ActivatePolicyRequest(adapter=names[i % len(names)]))
                assert state.active_adapter == names[i % len(names)]
                while len(written) < before + CALLERS and not any(caller.done() for caller in callers):
                    time.sleep(0.01)
        finally:
            swapping = False
        for caller in callers:
            caller.result()
    return written


def test_policies_change_under_a_stream_of_calls(
    store: LocalStore, policies: dict[str, str], model_folder: Path, tmp_path: Path
) -> None:
    async def run() -> list[pb.GenerateSelfEditsResponse]:
        engine = TransformersEngine(ModelSource(source=str(model_folder)), max_adapters=2)
        api = TeacherApi(Teacher(engine, AdapterCache(store, tmp_path / "cache")), max_new_tokens=12)
        server = RpcServer([api.servicer()], address=f"unix:{tmp_path}/teacher", settings=ServerSettings())
        await server.start()
        try:
            with grpc.insecure_channel(server.address) as channel:
                return await asyncio.to_thread(swap, TeacherServiceStub(channel), policies)
        finally:
            await server.stop()

    written = asyncio.run(run())
    assert len(written) >= CALLERS * ACTIVATIONS
    assert {response.adapter for response in written} == {*policies}
    for response in written:
        others = {*WORDS} - {policies[response.adapter]}
        assert policies[response.adapter] in response.text
        assert not any(word in response.text for word in others)
