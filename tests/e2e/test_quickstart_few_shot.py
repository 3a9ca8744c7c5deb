"""`rookery quickstart-few-shot` from its start to its report, with a grid model that has learned nothing; and what the
last `make quickstart-few-shot` has shown with the built-in one, if there was any. CI has no time for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rookery.cli.quickstart_few_shot import ROUNDS, few_shot_run
from rookery.local.ports import free_port
from rookery.v1.recipe_pb2 import GRADER_EXACT, GRADER_LIKELIHOOD
from rookery_tiny.grids.tokenizer import LONGEST, make_tokenizer
from rookery_tiny.training import Shape, new_model
from tests.prerequisites import ROOT

REPORT = ROOT / "rookery-data" / "few-shot.json"
ROWS = ["base", "passage only", "random", "oracle", "self-edits before RL", f"after round {ROUNDS}"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer()
    shape = Shape(hidden=32, layers=2, heads=2, mlp=64, positions=LONGEST)
    folder = tmp_path / "model"
    new_model(shape, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.timeout(300)
def test_it_ends_with_a_table_and_a_plot(model: Path, tmp_path: Path) -> None:
    sizes = ("--train", "1", "--test", "2", "--self-edits", "2")
    where = ("--folder", tmp_path / "data", "--address", f"127.0.0.1:{free_port()}")
    argv = [sys.executable, "-m", "rookery.cli.app", "quickstart-few-shot", "--model", model, *sizes, *where]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "data" / "few-shot.json").read_text())
    assert [row["name"] for row in report["rows"]] == ROWS
    assert {row["mean"] for row in report["rows"]} <= {0.0, 0.5, 1.0}, "shares of 2 puzzles"
    assert report["choices"]["before RL"]["configurations"] == 2, "held to the schema, all can be read"
    assert (tmp_path / "data" / "few-shot.svg").read_text().count("<svg") == 1
    assert "What the teacher chooses" in done.stdout


def test_likelihood_pays_and_solved_puzzles_are_reported() -> None:
    run = few_shot_run(train=2, test=3, self_edits=2, seed=0)
    assert (run.plan.reward, run.plan.test_grader) == (GRADER_LIKELIHOOD, GRADER_EXACT)
    assert (len(run.train_contexts), len(run.test_contexts)) == (2 * ROUNDS, 3)
    assert not {c.title.partition(": ")[2] for c in run.train_contexts} & {
        c.title.partition(": ")[2] for c in run.test_contexts
    }, "rules of the test are new"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if not REPORT.exists():
        pytest.skip("no `make quickstart-few-shot` was run here")
    content: dict[str, Any] = json.loads(REPORT.read_text())
    return content


def test_reinforcement_learning_gains_ten_points(report: dict[str, Any]) -> None:
    [last] = [c for c in report["comparisons"] if c["second"] == ROWS[-1] and c["first"] == "self-edits before RL"]
    assert last["mean_difference"] >= 0.10
    assert last["p_value"] < 0.01
    assert last["n"] >= 24


def test_it_takes_at_most_eight_minutes(report: dict[str, Any]) -> None:
    assert report["seconds"] <= 480


def test_the_teacher_comes_to_prefer_what_works(report: dict[str, Any]) -> None:
    """Augmentations that turn and mirror, and learning rates at which something is learned."""
    before, after = (report["choices"][when] for when in ("before RL", "after RL"))
    assert after["groups"]["basic"] > before["groups"]["basic"]
    assert after["learning_rate"][1] > 3 * before["learning_rate"][1]
