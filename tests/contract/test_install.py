"""The base install is the client: neither torch nor Celery nor any service's package comes with it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.prerequisites import ROOT

PROGRAM = """
import sys
import rookery, rookery.cli.app
from rookery.v1 import run_service_pb2_grpc
heavy = {"torch", "transformers", "peft", "celery", "sqlalchemy", "minio", "structlog", "grpc_health"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
rookery.Client("localhost:1").close()
"""


@pytest.mark.timeout(280)
def test_the_base_install_alone_imports_and_runs(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(ROOT)]
    subprocess.run(install, check=True, env=environment, cwd=tmp_path)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    ).stdout.lower()
    for package in ("torch", "celery", "sqlalchemy", "transformers", "minio"):
        assert f"\n{package}==" not in f"\n{listed}", f"the base install brings {package}"
    done = subprocess.run(
        [str(python), "-c", PROGRAM], check=True, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
    up = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "rookery"), "up"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert up.returncode == 1
    assert "pip install '.[local]'" in up.stderr
    assert "Traceback" not in up.stderr


@pytest.mark.parametrize(
    "module", ["rookery_coordinator.server", "rookery_coordinator.worker", "rookery_shared.store.connect"]
)
def test_the_coordinator_needs_no_torch(module: str) -> None:
    program = f"import {module}, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_training_core_needs_neither_celery_nor_minio() -> None:
    program = "import rookery_training.batch, sys; assert not {'celery', 'minio', 'pydantic_settings'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)
