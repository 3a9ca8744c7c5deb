"""The benches run, and say what they are asked; how fast things are is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bench import scoring
from tests.bench.plot import draw, tables
from tests.bench.training import Bench, machine, memory_table


def test_all_contenders_train_the_same(tmp_path: Path) -> None:
    bench = Bench("cpu", 1, tmp_path)
    compared = bench.compare("tiny", torch.float32, [1, 2])
    rows = compared["contenders"]
    assert {*rows} >= {"sequential", "ours, N=1", "ours, N=2"}
    assert abs(rows["ours, N=1"]["last_loss"] - rows["ours, N=2"]["last_loss"]) < 1e-3
    assert abs(rows["ours, N=2"]["last_loss"] - rows["sequential"]["last_loss"]) < 0.2, "other first weights"
    result = {
        "machine": machine("cpu"),
        "data": "a little",
        "contenders": [compared],
        "profile": [{"dtype": "float32", "shares": bench.profile("tiny", torch.float32, 2)}],
        "memory": memory_table("tiny", torch.float32, "cpu", [1]),
    }
    draw(json.loads(json.dumps(result)), tmp_path / "plot.svg")
    assert "ours" in (tmp_path / "plot.svg").read_text()
    assert any("| sequential |" in line for line in tables(result))


def test_the_soak_runs_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    options = ["--minutes", "0.2", "--parts", "1", "--jobs", "2", "--out", str(out)]
    argv = [sys.executable, "-m", "tests.bench.soak", *options]
    subprocess.run(argv, check=True, timeout=240, cwd=Path(__file__).parents[2])
    result = json.loads(out.read_text())
    assert result["adapters"] > 10
    assert result["files_left_of_unfinished_jobs"] == 0


def test_scores_of_all_contenders_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ADAPTERS", 4)
    contenders = scoring.measure("transformers", turns=1)["contenders"]
    assert len(contenders) == 4
    for contender in contenders.values():
        assert contender["same_answers"] == 1.0
        assert contender["largest_difference_in_nats"] < 1e-4
        assert contender["ratio"] > 0


def test_the_training_bench_needs_torch_transformers_and_peft_alone() -> None:
    """A bare machine with a GPU has neither our services' packages nor a broker."""
    absent = ["celery", "minio", "pydantic", "structlog", "grpc", "google.protobuf", "sqlalchemy", "matplotlib", "vllm"]
    code = f"import sys, tests.bench.training; print([name for name in {absent!r} if name in sys.modules])"
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=240, cwd=root)
    assert done.stdout.strip() == "[]"
