"""A profile is added, replaced or removed by a change of values that touches no other workload."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.charts import STUDENT, TEACHER, Rendering, render

BEFORE: dict[str, Any] = {
    "teachers": [TEACHER, {"name": "gamma", "model": "hub/gamma"}],
    "students": [STUDENT, {"name": "delta", "model": "hub/delta"}],
}

Change = Callable[[dict[str, Any]], None]


def manifests(made: Rendering) -> dict[tuple[str, str], Any]:
    return {(m["kind"], m["metadata"]["name"]): m for m in made.manifests}


def changed(change: Change) -> dict[tuple[str, str], str]:
    """What a change of the values changes, and of which profile it is."""
    values = copy.deepcopy(BEFORE)
    change(values)
    before, after = manifests(render(BEFORE)), manifests(render(values))
    return {
        key: (before.get(key) or after[key])["metadata"]["labels"].get("rookery/profile", "")
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }


def another_student(values: dict[str, Any]) -> None:
    values["students"][0] = {"name": "epsilon", "model": "hub/epsilon"}


def another_teacher(values: dict[str, Any]) -> None:
    values["teachers"][0] = {"name": "epsilon", "model": "hub/epsilon", "server": {"gpus": 4}}


def one_more(values: dict[str, Any]) -> None:
    values["students"].insert(0, {"name": "epsilon", "model": "hub/epsilon", "modelCache": {"size": "9Gi"}})


def one_less(values: dict[str, Any]) -> None:
    del values["teachers"][1]


@pytest.mark.parametrize(
    ("change", "profiles"),
    [
        (another_student, {"beta", "epsilon"}),
        (another_teacher, {"alpha", "epsilon"}),
        (one_more, {"epsilon"}),
        (one_less, {"gamma"}),
    ],
)
def test_a_change_of_profiles_touches_only_those(change: Change, profiles: set[str]) -> None:
    touched = changed(change)
    assert {*touched.values()} == profiles
    assert {kind for kind, _ in touched} >= {"Deployment", "Service", "NetworkPolicy", "Job"}


@pytest.mark.parametrize("workload", ["trainer", "evaluator"])
def test_a_change_of_one_workload_touches_it_alone(workload: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values["students"][0][workload] = {"gpus": 1, "image": {"tag": "next"}}

    name = "rookery-student-beta" if workload == "trainer" else "rookery-evaluator-beta"
    assert {*changed(change)} == {("Deployment", name)}


def test_another_model_is_registered_and_nothing_else_happens() -> None:
    """A profile that is registered does not change; the registration says so and fails."""

    def change(values: dict[str, Any]) -> None:
        values["students"][0]["model"] = "hub/other"

    touched = changed(change)
    assert {kind for kind, _ in touched} == {"Job"}
    assert {*touched.values()} == {"beta"}


def test_the_order_of_profiles_means_nothing() -> None:
    assert changed(lambda values: values["students"].reverse()) == {}


def test_an_image_of_one_service_touches_that_service_alone() -> None:
    def change(values: dict[str, Any]) -> None:
        values["images"] = {"evaluator": {"tag": "next"}}

    assert {*changed(change)} == {("Deployment", f"rookery-evaluator-{name}") for name in ("beta", "delta")}
