"""Takes each protection out of a copy of the source, and expects its test to fail there.

    python -m tests.requirements.without [NUMBER...] [--at-once 2]

The tests of a file are first run as they are, in the same company. Prints a line for each file and each removal. Ends
with 1 if a test passed without its protection, failed with it, or an edit no longer fits its file.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tests.requirements.removal import Removal

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PASSED, FAILED = 0, 1
"""pytest's exit codes. Any other means that the test did not run."""


def removals(numbers: set[int]) -> Iterator[tuple[Path, Sequence[Removal]]]:
    """The files of the requirements with these numbers, or of all, with their removals."""
    for path in sorted(HERE.glob("test_*.py")):
        if not numbers or int(path.stem.split("_")[1]) in numbers:
            yield path, importlib.import_module(f"tests.requirements.{path.stem}").REMOVALS


@contextmanager
def copy_of_source() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rookery-without-") as folder:
        root = Path(folder)
        for part in ("shared", "services", "tests", "proto"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md", "Makefile", "constraints.txt"):
            shutil.copy(ROOT / part, root / part)
        yield root


def run_tests(root: Path, path: Path, tests: Sequence[str], *, code: int) -> str:
    """Some tests of a file in a copy of the source. What pytest printed, if it does not end with this exit code."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(root / part) for part in ("shared", "services", ""))}
    names = [f"{path.relative_to(ROOT)}::{test}" for test in tests]
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    done = subprocess.run(
        argv, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return "" if done.returncode == code else f"exit code {done.returncode}\n{done.stdout}"


def remove(root: Path, removal: Removal) -> None:
    """Raises ValueError if the edit does not fit."""
    file = root / removal.file
    text = file.read_text()
    if text.count(removal.old) != 1:
        raise ValueError(f"{removal.file} holds the text of {removal.what!r} {text.count(removal.old)} times")
    file.write_text(text.replace(removal.old, removal.new))


def intact(path: Path, removals: Sequence[Removal]) -> str:
    """What is wrong with the tests of a file as it is; empty if they pass."""
    with copy_of_source() as root:
        other = run_tests(root, path, list(dict.fromkeys(removal.test for removal in removals)), code=PASSED)
    return other and f"its tests do not pass with their protections: {other}"


def without(path: Path, removal: Removal) -> str:
    """What is wrong with a removal; empty if its test fails."""
    with copy_of_source() as root:
        try:
            remove(root, removal)
        except ValueError as error:
            return str(error)
        other = run_tests(root, path, [removal.test], code=FAILED)
    return other and f"its test does not fail without it: {other}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of requirements; all if none is given")
    parser.add_argument("--at-once", type=int, default=2, help="tests that run beside each other")
    told = parser.parse_args()
    found = [*removals({*told.numbers})]
    wrong = tried = 0
    with ThreadPoolExecutor(told.at_once) as pool:
        checks = {pool.submit(_timed, intact, path, there): f"{path.stem}: as it is" for path, there in found}
        checks |= {
            pool.submit(_timed, without, path, each): f"{path.stem}: {each.what}"
            for path, there in found
            for each in there
        }
        for check in as_completed(checks):
            trouble, seconds = check.result()
            tried, wrong = tried + 1, wrong + bool(trouble)
            print(f"{checks[check]}: {trouble or 'as it should be'} ({seconds:.0f} s)", flush=True)  # noqa: T201
    print(f"{tried} checks, {wrong} wrong")  # noqa: T201
    raise SystemExit(bool(wrong))


def _timed(check: Callable[..., str], *arguments: object) -> tuple[str, float]:
    started = time.monotonic()
    return check(*arguments), time.monotonic() - started


if __name__ == "__main__":
    main()
