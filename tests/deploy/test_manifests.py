"""What Helm makes of the values is what Kubernetes takes, the oldest and the newest."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

from tests.deploy.charts import EXAMPLES, HELM, VALUES, Manifest, Rendering, chart, render, rendering

utils.schema_contents = cache(utils.schema_contents)  # megabytes, read for every manifest
OLDEST, NEWEST = utils.all_versions()[0], utils.all_versions()[-1]
SCHEMAS = Path(__file__).parent / "schemas"
CUSTOM = {"ScaledObject", "TriggerAuthentication", "PodMonitor", "ServiceMonitor", "PrometheusRule"}


@cache
def custom_schema(kind: str) -> Any:
    return json.loads((SCHEMAS / f"{kind.lower()}.json").read_text())


def validate(manifest: Manifest, version: str) -> None:
    """Raises a ValidationError of jsonschema."""
    _validate(json.dumps(manifest), version)


@cache
def _validate(text: str, version: str) -> None:
    """Once for what many sets of values make alike."""
    manifest = json.loads(text)
    if manifest["kind"] in CUSTOM:
        jsonschema.validate(manifest, custom_schema(manifest["kind"]))
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_helm_finds_nothing_to_complain_of() -> None:
    for name in ("defaults", "all by keda", "tried out", *(file.stem for file in EXAMPLES)):
        report = helm_python.lint(HELM / "rookery", VALUES[name], strict=True)
        complaints = [m["error"] for m in report["messages"] if m["error"] != "icon is recommended"]
        assert not complaints, name
        assert not report["errors"], name


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_is_valid(rendered: Rendering, version: str) -> None:
    assert rendered.manifests
    if rendered.name == "device claims" and version == OLDEST:
        return  # it knows of none
    for manifest in rendered.manifests:
        try:
            validate(manifest, version)
        except jsonschema.ValidationError as error:
            name = f"{manifest['kind']} {manifest['metadata']['name']}"
            pytest.fail(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")


def test_there_are_many_sets_and_they_make_every_kind() -> None:
    assert len(VALUES) >= 14
    kinds = {manifest["kind"] for name in VALUES for manifest in rendering(name).manifests}
    assert kinds >= CUSTOM | {"HorizontalPodAutoscaler", "PodDisruptionBudget", "PersistentVolumeClaim", "ConfigMap"}
    assert "Secret" not in kinds
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "PodMonitor", "NetworkPolicy"])
def test_a_field_that_kubernetes_does_not_know_is_found(kind: str) -> None:
    manifest = copy.deepcopy(next(m for n in VALUES for m in rendering(n).of(kind)))
    validate(manifest, NEWEST)
    manifest["spec"]["unheardOf"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest, NEWEST)


def test_the_chart_asks_for_the_oldest_that_is_tested() -> None:
    assert chart().metadata["kubeVersion"] == f">={OLDEST}-0"


def test_names_are_unique_and_short(rendered: Rendering) -> None:
    names = Counter((manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered.manifests)
    assert [name for name, times in names.items() if times > 1] == []
    assert [name for _, name in names if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)] == []


def test_the_longest_name_of_a_profile_is_served() -> None:
    longest = "x" * 40
    made = render({"teachers": [{"name": longest, "model": "tiny"}], "students": [{"name": "y" * 40, "model": "tiny"}]})
    test_names_are_unique_and_short(made)
    for manifest in made.manifests:
        validate(manifest, NEWEST)


def test_another_revision_is_the_same(rendered: Rendering) -> None:
    """Nothing is random or counted: an upgrade without a change starts nothing anew."""
    again = render(rendered.values, revision=7)
    assert again.texts == rendered.texts


def test_jobs_have_another_name_when_they_do_something_else() -> None:
    """Kubernetes cannot change a Job."""
    before, after = rendering("no migration hook"), render({**VALUES["no migration hook"], "log": {"level": "DEBUG"}})
    names = [{m["metadata"]["name"] for m in made.of("Job")} for made in (before, after)]
    assert len(names[0] - names[1]) == len(names[1] - names[0]) == 1
