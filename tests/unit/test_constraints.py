"""`constraints.txt`: whatever is installed comes in the versions that the tests have run with."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.prerequisites import ROOT

OURS, TOOLS = "rookery", "setuptools"
"""The latter is a virtual environment's own."""
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {canonicalize_name(each.name): str(each.specifier) for each in map(Requirement, LINES)}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """A distribution and all that it needs here."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    yield name
    for requirement in map(Requirement, distribution(name).requires or ()):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in (*extras, "")):
            yield from needed(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


def test_all_that_is_needed_is_pinned_and_here_in_that_version() -> None:
    found = {canonicalize_name(name) for name in needed(OURS, frozenset({"dev"}), set())} - {OURS, TOOLS}
    assert len(found) > 50
    assert {name: PINS.get(name) for name in found} == {
        name: f"=={Version(distribution(name).version).public}" for name in found
    }


def test_pins_are_in_order_and_exact() -> None:
    assert sorted(LINES, key=str.lower) == LINES
    assert all(pin.startswith("==") for pin in PINS.values())
