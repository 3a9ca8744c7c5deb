"""Takes each protection out of a copy of the source, and expects its test to fail there.

    python -m tests.requirements.without [NUMBER...]

Prints a line for each removal. Ends with 1 if a test passed without its protection, failed with it, or an edit no
longer fits its file.
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
from collections.abc import Iterator
from pathlib import Path

from tests.requirements.removal import Removal

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PASSED, FAILED = 0, 1
"""pytest's exit codes. Any other means that the test did not run."""


def removals(numbers: set[int]) -> Iterator[tuple[Path, Removal]]:
    """The removals of the requirements with these numbers, or of all."""
    for path in sorted(HERE.glob("test_*.py")):
        number = int(path.stem.split("_")[1])
        if numbers and number not in numbers:
            continue
        module = importlib.import_module(f"tests.requirements.{path.stem}")
        for removal in module.REMOVALS:
            yield path, removal


def run_test(root: Path, path: Path, test: str) -> int:
    """pytest's exit code for one test in a copy of the source."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(root / part) for part in ("shared", "services", ""))}
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"{path.relative_to(ROOT)}::{test}"]
    return subprocess.run(argv, cwd=root, env=environment, capture_output=True, check=False).returncode


def remove(root: Path, removal: Removal) -> None:
    """Raises ValueError if the edit does not fit."""
    file = root / removal.file
    text = file.read_text()
    if text.count(removal.old) != 1:
        raise ValueError(f"{removal.file} holds the text of {removal.what!r} {text.count(removal.old)} times")
    file.write_text(text.replace(removal.old, removal.new))


def tried(path: Path, removal: Removal) -> str:
    """What came of a removal; empty if its test passed with the protection and failed without."""
    with tempfile.TemporaryDirectory(prefix="rookery-without-") as folder:
        root = Path(folder)
        for part in ("shared", "services", "tests", "proto"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md", "Makefile", "constraints.txt"):
            shutil.copy(ROOT / part, root / part)
        if (code := run_test(root, path, removal.test)) != PASSED:
            return f"fails with it (exit code {code})"
        try:
            remove(root, removal)
        except ValueError as error:
            return str(error)
        code = run_test(root, path, removal.test)
        return "" if code == FAILED else f"does not fail without it (exit code {code})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of requirements; all if none is given")
    numbers = {*parser.parse_args().numbers}
    wrong = 0
    for path, removal in removals(numbers):
        started = time.monotonic()
        trouble = tried(path, removal)
        wrong += bool(trouble)
        seconds = time.monotonic() - started
        print(f"{path.stem}: {removal.what}: {trouble or 'its test fails without it'} ({seconds:.0f} s)", flush=True)  # noqa: T201
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
