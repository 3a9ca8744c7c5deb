"""Requirement 14: hostile adapters are refused before torch, or anything that could run their code, sees them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rookery.errors import CallFailed
from rookery.transport import open_channel, stream
from rookery.v1.context_pb2 import Context, Question
from rookery.v1.evaluator_service_pb2 import ScoreRequest, ScoreResponse
from rookery.v1.evaluator_service_pb2_grpc import EvaluatorServiceStub
from rookery_engines.models import ModelSource
from rookery_engines.transformers import TransformersEngine
from rookery_evaluator.scoring import Evaluator
from rookery_evaluator.server import EvaluatorApi
from rookery_shared.errors import AdapterMismatch, AdapterRefused
from rookery_shared.store.adapters import FILES, AdapterCache, Origin, adapter_name, publish
from rookery_shared.store.local import LocalStore
from tests.adapter_files import publish_unchecked, write_adapter_files
from tests.models import random_model, small_tokenizer
from tests.requirements.removal import Removal
from tests.requirements.serving import TIMEOUT, serve
from tests.unit.test_admission import HOSTILE, ORIGIN

REMOVALS = [
    Removal(
        what="the check of what is read from the store",
        file="shared/rookery_shared/store/adapters.py",
        old="    admit(folder, name=name, rank=manifest.rank)\n",
        new="",
        test="test_the_evaluator_refuses_all_of_them_and_goes_on",
    ),
    Removal(
        what="the check of what is published",
        file="shared/rookery_shared/store/adapters.py",
        old='    admit(folder, name=f"the adapter of job {origin.job}", rank=origin.rank)\n',
        new="",
        test="test_they_are_refused_in_a_process_that_never_loads_torch",
    ),
    Removal(
        what="a check without torch",
        file="shared/rookery_shared/admission.py",
        old="import stat\n",
        new="import stat\nimport torch\n",
        test="test_they_are_refused_in_a_process_that_never_loads_torch",
    ),
    Removal(
        what="the base model that the manifest names",
        file="shared/rookery_engines/connect.py",
        old="if (manifest.base_model, manifest.base_revision) != (identity.source, identity.revision):",
        new="if False:",
        test="test_an_adapter_of_another_base_model_is_refused",
    ),
]

FITTING = {
    f"base_model.model.model.layers.0.self_attn.{layer}.lora_{factor}.weight": shape
    for layer, outputs in (("q_proj", 32), ("v_proj", 16))
    for factor, shape in (("A", (8, 32)), ("B", (outputs, 8)))
}
"""The shapes of an adapter that the model takes."""

IN_A_FRESH_PROCESS = """
import sys, tempfile
from pathlib import Path
from rookery_shared.errors import AdapterRefused
from rookery_shared.store.adapters import FILES, AdapterCache, publish
from rookery_shared.store.local import LocalStore
from tests.adapter_files import publish_unchecked
from tests.unit.test_admission import HOSTILE, ORIGIN
for name, (build, _) in HOSTILE.items():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = LocalStore(folder / "objects")
        build(folder / "adapter")
        steps = [lambda: publish(store, folder / "adapter", ORIGIN)]
        if {*FILES} <= {path.name for path in (folder / "adapter").iterdir()}:
            stored = publish_unchecked(store, folder / "adapter", ORIGIN)
            steps.append(lambda: AdapterCache(store, folder / "cache").hold(stored))
        for step in steps:
            try:
                step()
            except AdapterRefused:
                continue
            raise SystemExit(f"{name} was taken")
loaders = {"torch", "safetensors", "peft", "transformers", "vllm", "numpy"} & {*sys.modules}
raise SystemExit(f"{loaders} were loaded" if loaders else 0)
"""


def test_they_are_refused_in_a_process_that_never_loads_torch() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class Evaluating:
    """A real evaluator with a small model."""

    stub: EvaluatorServiceStub
    engine: TransformersEngine
    store: LocalStore
    origin: Origin
    good: str
    folder: Path

    def score(self, *adapters: str) -> list[ScoreResponse]:
        context = Context(title="T", passage="P", questions=[Question(question="Q?", answer="A")])
        items = [ScoreRequest.Item(adapter=adapter, context=context) for adapter in adapters]
        return [*stream(self.stub.Score, ScoreRequest(items=items, max_new_tokens=2), seconds=TIMEOUT)]


@pytest.fixture(scope="module")
def evaluating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluating]:
    folder = tmp_path_factory.mktemp("evaluator")
    random_model().save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    engine = TransformersEngine(ModelSource(source=str(folder / "model")))
    store = LocalStore(folder / "objects")
    origin = replace(ORIGIN, base_model=engine.identity.source, base_revision="")
    good = adapter_name(
        publish(store, write_adapter_files(folder / "good", shapes=FITTING, fill=b"\x3f"), origin).digest
    )
    evaluator = Evaluator(engine, AdapterCache(store, folder / "cache"))
    with serve(EvaluatorApi(evaluator).servicer()) as server, open_channel(server.target) as channel:
        yield Evaluating(EvaluatorServiceStub(channel), engine, store, origin, good, folder)


def test_the_evaluator_refuses_all_of_them_and_goes_on(
    evaluating: Evaluating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has written them to the store, with the right digests."""
    monkeypatch.chdir(tmp_path)
    for name, (build, _) in HOSTILE.items():
        folder = tmp_path / name.replace(" ", "-").replace("^", "")
        build(folder)
        if not {*FILES} <= {path.name for path in folder.iterdir()}:
            continue
        stored = publish_unchecked(evaluating.store, folder, evaluating.origin)
        with pytest.raises(CallFailed) as caught:
            evaluating.score(evaluating.good, stored)
        assert (name, caught.value.reason) == (name, AdapterRefused.reason)
        assert caught.value.metadata == {"adapter": stored}
    assert not (tmp_path / "canary").exists()
    [score] = evaluating.score(evaluating.good)
    assert score.adapter == evaluating.good
    assert evaluating.engine.loaded() == [evaluating.good]


def test_an_adapter_of_another_base_model_is_refused(evaluating: Evaluating) -> None:
    folder = write_adapter_files(evaluating.folder / "other", shapes=FITTING)
    manifest = publish(evaluating.store, folder, replace(evaluating.origin, base_model="another"))
    with pytest.raises(CallFailed) as caught:
        evaluating.score(adapter_name(manifest.digest))
    assert caught.value.reason == AdapterMismatch.reason
