"""A client in another language, made from the protos alone: the example of the README, run as it says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rookery.v1.adaptation_service_pb2 import STATE_SUCCEEDED
from rookery_tiny.contexts import make_contexts
from rookery_tiny.world import Surnames
from tests.e2e.systems import System
from tests.prerequisites import ROOT

INSTALL_SECONDS = 120


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder in a copy of what it needs of the repository: itself and the protos."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are missing")
    copy = tmp_path_factory.mktemp("clone")
    for folder in ("examples/node", "proto"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("node_modules"))
    argv = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        argv, cwd=copy / "examples" / "node", capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode:
        pytest.skip(f"npm cannot install: {done.stderr[-300:]}")
    return copy / "examples" / "node"


def run(example: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["node", "adapt.js", *arguments]
    return subprocess.run(argv, cwd=example, capture_output=True, text=True, timeout=240, check=False)


def test_node_creates_and_watches_an_adaptation(example: Path, system: System, tmp_path: Path) -> None:
    context = make_contexts(Surnames.TEST, 1, seed=21)[0]
    (tmp_path / "passage.txt").write_text(context.passage)
    pairs = [text for question in context.questions[:2] for text in (question.question, question.answer)]
    done = run(
        example, system.address, system.teacher, system.student, context.title, str(tmp_path / "passage.txt"), *pairs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    adaptation = system.client.get_adaptation(lines[0])
    assert adaptation.state == STATE_SUCCEEDED
    assert lines[-1] == f"STATE_SUCCEEDED {adaptation.adapter}"
    assert [line for line in lines if "trials done" in line], "it was told how far it was"
    events = [event.message for event in system.client.watch_adaptation(adaptation.name)]
    assert lines[1:-1] == events, "every event, each once, in order"


def test_node_is_told_why_it_is_refused(example: Path, system: System, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    done = run(example, system.address, system.teacher, system.student, "Nothing", str(tmp_path / "empty.txt"))
    assert done.returncode == 1
    assert "passage" in done.stderr


def test_the_readme_has_its_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "cd examples/node && npm install" in readme
    assert "node adapt.js localhost:7070" in readme
