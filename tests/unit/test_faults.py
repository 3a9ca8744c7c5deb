"""Fault points do nothing by themselves, and what they are told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import timeit
from pathlib import Path

import pytest

from rookery_shared import faults
from rookery_shared.faults import Action, Fault, Point, fault_point, read_faults

ROOT = Path(__file__).parents[2]
THREE_CLAIMS = """
from rookery_shared.faults import Point, fault_point
for i in range(3):
    try:
        fault_point(Point.CLAIMED, job="j", epoch=i)
    except OSError as error:
        print(error)
    print(i, flush=True)
"""


def run(tmp_path: Path, fault: str, **more: str) -> subprocess.CompletedProcess[str]:
    settings = {"ROOKERY_FAULTS": fault, "ROOKERY_HISTORY": str(tmp_path / "history"), **more}
    return subprocess.run(
        [sys.executable, "-c", THREE_CLAIMS], env=os.environ | settings, capture_output=True, text=True, check=False
    )


def test_what_is_asked_for_is_read() -> None:
    assert read_faults("claimed=kill@0.02,published=pause:3@0.05,step=stop:0.5#7,worked=error") == {
        Point.CLAIMED: Fault(action=Action.KILL, probability=0.02),
        Point.PUBLISHED: Fault(action=Action.PAUSE, seconds=3, probability=0.05),
        Point.STEP: Fault(action=Action.STOP, seconds=0.5, time=7),
        Point.WORKED: Fault(action=Action.ERROR),
    }


@pytest.mark.parametrize("wrong", ["claimde=kill", "claimed=kil", "claimed", "claimed=kill@x", "claimed=kill:1 "])
def test_a_misspelt_fault_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"ROOKERY_FAULTS|not a valid"):
        read_faults(wrong)


def test_a_process_with_a_misspelt_fault_does_not_start(tmp_path: Path) -> None:
    assert "claimde" in run(tmp_path, "claimde=kill").stderr


def test_a_process_dies_where_it_is_told_to(tmp_path: Path) -> None:
    done = run(tmp_path, "claimed=kill#2")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n")
    [file] = (tmp_path / "history").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["point"], line.get("epoch"), line.get("fault")) for line in lines] == [
        ("claimed", 0, None),
        ("claimed", 1, None),
        ("claimed", None, "kill"),
    ]


def test_a_process_stops_and_goes_on(tmp_path: Path) -> None:
    started = time.monotonic()
    assert run(tmp_path, "claimed=stop:0.3#1").stdout == "0\n1\n2\n"
    assert time.monotonic() - started > 0.3


def test_errors_are_raised(tmp_path: Path) -> None:
    assert run(tmp_path, "claimed=error#1").stdout.startswith("a fault at claimed")


def test_nothing_happens_once_the_file_is_gone(tmp_path: Path) -> None:
    assert run(tmp_path, "claimed=kill", ROOKERY_FAULTS_WHILE=str(tmp_path / "x")).stdout == "0\n1\n2\n"
    (tmp_path / "x").touch()
    assert run(tmp_path, "claimed=kill", ROOKERY_FAULTS_WHILE=str(tmp_path / "x")).stdout == ""


def test_what_happens_at_a_time_happens_once_in_all_processes(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    outputs = [run(tmp_path, "claimed=kill#2", ROOKERY_FAULTS_WHILE=str(tmp_path / "x")).stdout for _ in range(2)]
    assert outputs == ["0\n", "0\n1\n2\n"]


def test_a_point_that_is_off_costs_nothing() -> None:
    """Nanoseconds; the least of several tries, since the machine has other work."""
    assert faults._kit is None
    seconds = min(timeit.repeat(lambda: fault_point(Point.STEP), number=10_000, repeat=20)) / 10_000
    assert seconds < 2e-6, "about 0.15 on an idle machine"


def test_every_point_is_somewhere_in_the_code() -> None:
    code = "".join(
        path.read_text()
        for part in ("shared", "services")
        for path in (ROOT / part).rglob("*.py")
        if "v1" not in path.parts
    )
    assert {*re.findall(r"fault_point\(\s*Point\.(\w+)", code)} == {point.name for point in Point}
