"""What a test needs besides the code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("ROOKERY_CI") == "1"


def lacking(what: str) -> NoReturn:
    """A missing prerequisite skips on a laptop and fails in CI."""
    if IN_CI:
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")
