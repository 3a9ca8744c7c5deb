"""The removals of `tests.requirements.without`, which runs too long for CI, still fit the code that they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.requirements.removal import Removal
from tests.requirements.without import ROOT, removals

ALL = [(path, removal) for path, there in removals(set()) for removal in there]


@pytest.mark.parametrize(("path", "removal"), ALL, ids=[f"{path.stem}: {removal.what}" for path, removal in ALL])
def test_what_is_taken_out_is_there_once_and_its_test_exists(path: Path, removal: Removal) -> None:
    assert (ROOT / removal.file).read_text().count(removal.old) == 1
    assert f"def {removal.test.partition('[')[0]}(" in path.read_text()
