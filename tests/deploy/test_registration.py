"""The commands that the chart's jobs and its test run, against a coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rookery import Client
from rookery.cli.app import app
from rookery.errors import CallFailed
from rookery.v1.model_service_pb2 import ROLE_STUDENT, ROLE_TEACHER
from tests.deploy.charts import REMOTE, STUDENT, TEACHER, component, render
from tests.servers.coordinators import start_coordinators

VALUES: dict[str, Any] = {
    "teachers": [{**TEACHER, "model": "hub/alpha", "limits": {"maxNewTokens": 77}}, REMOTE],
    "students": [{**STUDENT, "model": "hub/beta", "dtype": "bfloat16", "chat": True, "revision": "v2"}],
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_coordinators(1, tmp_path_factory.mktemp("coordinator")) as running:
        yield running[0].target


def run(command: list[str], target: str) -> Result:
    """As the pod would, at another address."""
    assert command[0] == "rookery"
    return CliRunner().invoke(app, [target if word.startswith("dns:///") else word for word in command[1:]])


def commands(values: dict[str, Any], kind: str, of: str) -> list[list[str]]:
    return [
        pod["spec"]["containers"][0]["command"]
        for pod in render(values).pods
        if (pod["kind"], component(pod)) == (kind, of)
    ]


def test_profiles_are_registered_once_and_the_test_sees_them(target: str) -> None:
    registrations = commands(VALUES, "Job", "registration")
    assert len(registrations) == 3
    for command in (*registrations, registrations[0]):
        done = run(command, target)
        assert done.exit_code == 0, done.exception
    with Client(target) as client:
        found = {profile.name.removeprefix("profiles/"): profile for profile in client.list_profiles()}
    assert (found["alpha"].role, found["alpha"].model.source) == (ROLE_TEACHER, "hub/alpha")
    assert (found["alpha"].dtype, found["alpha"].limits.max_new_tokens) == ("float32", 77)
    assert (found["far"].engine, found["far"].model.source) == ("openai", "gpt")
    beta = found["beta"]
    assert (beta.role, beta.chat, beta.model.revision, beta.dtype) == (ROLE_STUDENT, True, "v2", "bfloat16")

    (test,) = commands(VALUES, "Pod", "test")
    done = run(test, target)
    assert done.exit_code == 0
    assert "hub/beta" in done.stdout


@pytest.mark.parametrize("change", [{"model": "hub/other"}, {"limits": {"maxNewTokens": 78}}, {"dtype": "bfloat16"}])
def test_another_profile_of_the_name_is_refused(target: str, change: dict[str, Any]) -> None:
    own = {
        "name": f"own-{'-'.join(change).lower()}",
        "model": "hub/own",
        "dtype": "float32",
        "limits": {"maxNewTokens": 77},
    }
    (first,) = commands({"teachers": [own]}, "Job", "registration")
    assert run(first, target).exit_code == 0
    (second,) = commands({"teachers": [{**own, **change}]}, "Job", "registration")
    refused = run(second, target).exception
    assert isinstance(refused, CallFailed)
    assert refused.reason == "NAME_TAKEN"
