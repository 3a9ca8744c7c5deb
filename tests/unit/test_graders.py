"""Graders of short answers."""

from __future__ import annotations

import pytest

from rookery_shared.domains import graders, matching
from rookery_shared.domains.knowledge import Knowledge
from rookery_shared.types import Question


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "f1", "contains"),
    [
        ("Denver Broncos", "the denver broncos.", 1.0, 1.0, 1.0),
        ("Denver Broncos", "It was the Denver Broncos", 0.0, 2 / 3, 1.0),
        ("Denver Broncos", "Broncos of Denver", 0.0, 4 / 5, 0.0),
        ("Denver Broncos", "", 0.0, 0.0, 0.0),
        ("art", "party", 0.0, 0.0, 0.0),
        ("24–10", "24–10", 1.0, 1.0, 1.0),
        ("a b c", "c b", 0.0, 2 * (2 / 2) * (2 / 2) / 2, 0.0),
    ],
)
def test_grades(gold: str, answer: str, exact: float, f1: float, contains: float) -> None:
    assert graders.exact(gold, answer) == exact
    assert graders.f1(gold, answer) == pytest.approx(f1)
    assert graders.contains(gold, answer) == contains


def test_the_domain_names_each_grader_with_its_version() -> None:
    domain = Knowledge()
    grades = domain.grade(Question(question="?", answer="x"), "x")
    versions = dict(name.split("/") for name in domain.graders)
    assert {*versions} == {*grades, graders.LOGLIK, graders.LIKELIHOOD}
    assert versions["match"] == matching.VERSION
    assert {version for name, version in versions.items() if name != "match"} == {graders.VERSION}
