"""Models that lie in an object store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import SecretStr

from rookery.v1.model_service_pb2 import ModelSource, Profile
from rookery_engines.models import load_model
from rookery_engines.sources import source_of
from rookery_engines.transformers import TransformersEngine
from rookery_shared.errors import ModelNotLoadable, NoDevice, StoreUnavailable
from rookery_shared.settings import ModelServiceSettings
from rookery_shared.store.connect import open_url
from tests.servers.s3 import S3Server


@pytest.fixture
def settings(moto_server: S3Server, tmp_path: Path) -> ModelServiceSettings:
    return ModelServiceSettings(
        profile="profiles/p",
        cache_folder=tmp_path / "cache",
        s3_endpoint=moto_server.endpoint,
        s3_access_key=SecretStr(moto_server.access_key),
        s3_secret_key=SecretStr(moto_server.secret_key),
        s3_secure=False,
    )


def profile(source: str) -> Profile:
    return Profile(name="profiles/p", model=ModelSource(source=source), dtype="float32")


def test_a_model_under_an_s3_prefix_is_fetched_once(
    moto_server: S3Server, settings: ModelServiceSettings, model_folder: Path
) -> None:
    url = f"s3://{moto_server.bucket}/models/small"
    store = open_url(url, settings)
    for path in model_folder.iterdir():
        store.upload(path, path.name)
    store.write("evil.bin", b"a pickle")
    source = source_of(profile(url), settings)
    assert {path.name for path in Path(source.path).iterdir()} == {path.name for path in model_folder.iterdir()}
    engine = TransformersEngine(source)
    assert str(engine.identity) == url, "adapters are of the model, wherever its copy lies"
    assert load_model(source)[0].name_or_path == url, "and say so in their files"
    for path in model_folder.iterdir():
        store.remove(path.name)
    load_model(source_of(profile(url), settings))
    assert source_of(profile(str(model_folder)), settings).path == str(model_folder), "a folder is taken as it is"


@pytest.mark.parametrize("source", ["s3://rookery/models/none", "s3://no-such-bucket/x"])
def test_a_prefix_without_a_model_is_refused(settings: ModelServiceSettings, source: str) -> None:
    with pytest.raises(ModelNotLoadable, match=source):
        source_of(profile(source), settings)
    assert not any((settings.cache_folder / "models").iterdir()), "and leaves nothing"


def test_a_server_that_is_away_is_named(settings: ModelServiceSettings) -> None:
    away = settings.model_copy(update={"s3_endpoint": "127.0.0.1:9"})
    with pytest.raises(StoreUnavailable, match="cannot fetch"):  # so that its job is tried again
        source_of(profile("s3://rookery/x"), away)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_model_that_must_be_on_a_gpu_is_not_loaded_without_one(
    settings: ModelServiceSettings, model_folder: Path
) -> None:
    wanted = source_of(profile(str(model_folder)), settings.model_copy(update={"device": "cuda"}))
    with pytest.raises(NoDevice, match=r"torch was built for the CPU alone|torch finds no GPU that it can use"):
        load_model(wanted)
    anywhere = source_of(profile(str(model_folder)), settings)
    assert load_model(anywhere)[0].device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["rookery_student"], ["rookery_teacher", "trainer"]])
def test_a_worker_that_must_have_a_gpu_takes_no_job_without_one(command: list[str], tmp_path: Path) -> None:
    told = {
        **os.environ,
        "ROOKERY_PROFILE": "profiles/p",
        "ROOKERY_DEVICE": "cuda",
        "ROOKERY_STORE_URL": f"file://{tmp_path}/objects",
        "ROOKERY_CACHE_FOLDER": str(tmp_path / "cache"),
        "ROOKERY_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    argv = [sys.executable, "-m", *command]
    done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "NO_DEVICE" in done.stderr
