"""Each Dockerfile's own install steps, carried out without Docker, and the chart on what they have installed.

`make test-images`: minutes, and gigabytes. The base images' Python is this one, and torch is that of the index at hand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.deploy.launcher import running_pair
from tests.deploy.test_images import SERVICES, stages
from tests.prerequisites import ROOT
from tests.servers.postgres import make_database

pytestmark = [
    pytest.mark.skipif(os.environ.get("ROOKERY_TEST_IMAGES") != "1", reason="`make test-images` runs it"),
    pytest.mark.timeout(3600),
]

ARGUMENTS = {"TORCH_INDEX": ""}
"""What is built with, in place of the defaults."""
OURS = "/opt/rookery"
ALIEN = {
    "coordinator": {"torch", "transformers", "peft", "pytest"},
    "evaluator": {"sqlalchemy", "celery", "pytest"},
    "student": {"sqlalchemy", "alembic", "pytest"},
    "teacher": {"sqlalchemy", "alembic", "pytest"},
}
"""What a service has no use for."""


def install(service: str, folder: Path) -> Path:
    """Carry out the build stage in a folder. Returns where its programs are."""
    build = next(stage for stage in stages(service) if stage[0][1].endswith(" AS build"))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"
    source = folder / "src"
    for word, rest in build[1:]:
        match word:
            case "ARG":
                name, _, default = rest.partition("=")
                environment[name] = ARGUMENTS.get(name, default)
            case "ENV":
                for pair in rest.split():
                    name, _, value = pair.partition("=")
                    environment[name] = _expanded(value, environment)
            case "WORKDIR":
                source.mkdir(parents=True)
            case "COPY":
                *copied, target = rest.split()
                for path in copied:
                    _copy(ROOT / path, source / target if len(copied) == 1 else source / target / path)
            case "RUN":
                command = rest.replace(OURS, str(folder / "rookery"))
                done = subprocess.run(
                    ["sh", "-c", command], cwd=source, env=environment, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr[-3000:]
            case _:
                raise AssertionError(f"no step of an installation: {word} {rest}")
    shutil.rmtree(source)  # what runs has the environment alone
    return folder / "rookery" / "bin"


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        text = text.replace(f"${{{name}}}", value)
    return text


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc"))
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {service: install(service, tmp_path_factory.mktemp(service)) for service in SERVICES}


def test_each_has_what_it_needs_and_no_more(installed: dict[str, Path]) -> None:
    for service, programs in installed.items():
        names = ", ".join(repr(name) for name in sorted(ALIEN[service]))
        script = f"from importlib.util import find_spec; print([n for n in ({names},) if find_spec(n)])"
        argv = [str(programs / "python"), "-I", "-c", script]
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "[]", service
        assert (programs / f"rookery-{service}").is_file()


def test_they_form_a_working_system(
    installed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, postgres_url: str
) -> None:
    programs = {f"rookery-{service}": folder / f"rookery-{service}" for service, folder in installed.items()}
    programs["rookery"] = installed["coordinator"] / "rookery"
    with running_pair(tmp_path_factory.mktemp("chart"), make_database(postgres_url), programs) as cluster:
        [test] = cluster.made.of("Pod")
        code, output = cluster.run_pod("test", test)
    assert code == 0, output
    assert "Who founded Orval Tech?" in output
