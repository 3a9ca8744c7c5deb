"""A task as ARC publishes it, through the command, with the tiny grid model as teacher and as student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import running_system
from tests.e2e.systems import rookery

TASK = "6150a2bd"
"""Two demonstrations of 3 x 3 cells, turned upside down."""


@pytest.mark.timeout(600)
def test_a_published_task_is_adapted_to(seal_data: Path, tmp_path: Path) -> None:
    """Whatever the score."""
    files = [seal_data / "few_shot" / f"arc-agi_training_{what}.json" for what in ("challenges", "solutions")]
    with running_system(tmp_path / "system") as system:
        for role in ("teacher", "student"):
            sizes = ("--max-new-tokens", "300")
            rookery(system, "models", "create", role, f"grid-{role}", "--model", "tiny-grids", *sizes)
        profiles = ("--teacher", "profiles/grid-teacher", "--student", "profiles/grid-student")
        recipe = ("--rank", "16", "--target", "all-linear", "--max-steps", "72", "--self-edits", "2")
        where = ("--task", files[0], "--solutions", files[1], "--name", TASK, "--out", tmp_path / "adapter")
        said = json.loads(rookery(system, "adapt", *where, *profiles, *recipe, "--json"))
    assert said["state"] == "STATE_SUCCEEDED"
    solution = json.loads(files[1].read_text())[TASK]
    [answer] = said["answers"]
    assert answer["gold"] == "\n".join(" ".join(map(str, row)) for row in solution[0])
    assert answer["after"], "it wrote what can be read as a grid"
    assert json.loads(said["self_edit"])["training"]["num_train_epochs"] >= 1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
