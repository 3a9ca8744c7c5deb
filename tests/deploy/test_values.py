"""The values: what is not known or contradicts itself is refused, and the README says what there is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmRenderError, HelmValuesError

from deploy.helm.readme import read_values, readme
from tests.deploy.charts import CPU, HELM, PAIR, REMOTE, STUDENT, TEACHER, render
from tests.prerequisites import ROOT

TEXT = (HELM / "rookery" / "values.yaml").read_text()
SCHEMA = json.loads((HELM / "rookery" / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load(TEXT)
DESCRIBED = read_values(TEXT)
READMES = [ROOT / "README.md", HELM / "rookery" / "README.md"]
GROUPS = [value.path for value in DESCRIBED if not value.default]
BOTH = {"keda": {"enabled": True}, "hpa": {"enabled": True}}
BALANCED = {"serviceType": "LoadBalancer"}


def at(path: str, value: object) -> dict[str, Any]:
    """Values with one set, such as coordinator.hpa."""
    return reduce(lambda inner, key: {key: inner}, reversed(path.split(".")), value)  # type: ignore[arg-type]  # nested


# --- the schema -----------------------------------------------------------------------------------------------------


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield path, schema
        for key, inner in schema.items():
            yield from objects(inner, f"{path}/{key}")
    elif isinstance(schema, list):
        for position, inner in enumerate(schema):
            yield from objects(inner, f"{path}/{position}")


def test_every_object_of_the_schema_is_closed() -> None:
    found = [*objects(SCHEMA)]
    assert len(found) > 50
    for path, schema in found:
        more = schema.get("additionalProperties", True)
        assert more is not True or "own" in schema.get("$comment", ""), path  # Kubernetes' or Helm's own


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_an_unknown_key_is_refused(group: str) -> None:
    path = f"{group}.unheardOf" if group else "unheardOf"
    with pytest.raises(HelmValuesError, match="additional properties 'unheardOf' not allowed"):
        render(at(path, 1))


@pytest.mark.parametrize(
    "values",
    [
        {"teachers": [{**TEACHER, "modl": "x"}]},
        {"teachers": [{**TEACHER, "evaluator": {}}]},
        {"teachers": [{**TEACHER, "server": {"stopSeconds": 3}}]},
        {"teachers": [{"model": "tiny"}]},
        {"students": [{**STUDENT, "name": "Beta"}]},
        {"students": [{**STUDENT, "name": "beta-"}]},
        {"students": [{**STUDENT, "engine": "openai"}]},
        {"students": [{**STUDENT, "trainer": {"settings": {"adapters_at_onc": 1}}}]},
        {"students": [{**STUDENT, "evaluator": {"keda": {"max": 0}}}]},
        {"coordinator": {"settings": {"address": "0.0.0.0:1"}}},
        {"coordinator": {"settings": {"database_url": "sqlite://"}}},
        {"coordinator": {"keda": {"enabled": True}}},
        {"coordinator": {"resources": {"limit": {}}}},
        {"coordinator": {"tolerations": [{"key": "a", "effect": "NoWay"}]}},
        {"coordinator": {"env": {"ROOKERY_ADDRESS": "x"}}},
        {"worker": {"env": {"HF_TOKEN": "hf_x"}}},
        {"worker": {"env": {"OPENAI_API_KEY": "sk"}}},
        {"worker": {"env": {"TOKEN": "x"}}},
        {"worker": {"env": {"A_TOKEN_OF_MINE": "x"}}},
        {"worker": {"env": {"PGPASSWORD": "x"}}},
        {"worker": {"env": {"AWS_SECRET_ACCESS_KEY_ID": "x"}}},
        {"caBundle": {"existingConfigMap": "A B"}},
        {"migrations": {"seconds": 0}},
        {"store": {"port": 65536}},
        {"database": {"port": 0}},
        {"workloadDefaults": {"stopSeconds": 30}},
        {"images": {"teacher": {"tag": "latest"}}},
        {"images": {"teacher": {"digest": "sha256:1"}}},
        {"database": {"url": "postgresql://a:b@c/d"}},
        {"database": {"existingSecret": ""}},
        {"store": {"url": "file:///data"}},
        {"teacherDefaults": {"endpoint": {"url": "https://me:secret@host/v1"}}},
        {"networkPolicy": {"clients": [{}]}},
        {"metrics": {"port": 0}},
        {"dev": {"redis": {"image": "redis:latest"}}},
    ],
    ids=json.dumps,
)
def test_bad_values_are_refused_by_the_schema(values: dict[str, Any]) -> None:
    with pytest.raises(HelmValuesError):
        render(values)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "NCCL_DEBUG", "KEYRING"])
def test_names_that_are_no_secrets_are_taken(name: str) -> None:
    made = render({"worker": {"env": {name: "x"}}})
    pod = made.one("Deployment", "rookery-worker")["spec"]["template"]
    assert {"name": name, "value": "x"} in pod["spec"]["containers"][0]["env"]


def test_the_schema_and_the_values_have_the_same_keys() -> None:
    """A default of the values that the schema lacks would be refused; this is the other way round."""
    known = {value.path for value in DESCRIBED}
    assert [path for path in described(SCHEMA) if path not in known] == []


def described(schema: Any, prefix: str = "") -> Iterator[str]:
    """The paths of values in a schema, down to lists, maps and what Kubernetes defines."""
    for key, inner in schema["properties"].items():
        resolved = inner
        if "$ref" in inner:
            resolved = SCHEMA["$defs"][inner["$ref"].rpartition("/")[2]]
        path = f"{prefix}{key}"
        if path in {"global", "teacherDefaults.server", "teacherDefaults.trainer"} or key in {
            "settings",
            "affinity",
            "resources",
        }:
            continue
        yield path
        if "properties" in resolved and path not in {"studentDefaults.trainer", "studentDefaults.evaluator"}:
            yield from described(resolved, f"{path}.")


# --- what contradicts itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"worker": BOTH}, "worker: keda and hpa would fight"),
        ({"workloadDefaults": BOTH, **PAIR}, "keda and hpa would fight"),
        ({"teachers": [{**TEACHER, "server": BOTH}]}, "teachers.alpha.server: keda and hpa would fight"),
        ({"teachers": [{**TEACHER, "trainer": BOTH}]}, "teachers.alpha.trainer: keda and hpa would fight"),
        ({"students": [{**STUDENT, "trainer": BOTH}]}, "students.beta.trainer: keda and hpa would fight"),
        (
            {
                "workloadDefaults": {"keda": {"enabled": True}},
                "students": [{**STUDENT, "evaluator": {"hpa": {"enabled": True}}}],
            },
            "students.beta.evaluator: keda and hpa would fight",
        ),
        ({"worker": {"keda": {"enabled": True, "min": 5}}}, "worker: keda.min is above keda.max"),
        ({"coordinator": {"hpa": {"enabled": True, "max": 1}}}, "coordinator: hpa.min is above hpa.max"),
        ({**PAIR, "workloadDefaults": {"hpa": {"enabled": True}}}, "hpa scales by the share of the CPU"),
        (
            {"teachers": [TEACHER], "students": [{**STUDENT, "name": "alpha"}]},
            "two profiles have one name: alpha, alpha",
        ),
        ({"teachers": [{"name": "alpha"}]}, "teachers.alpha has no model"),
        ({"students": [{"name": "beta"}]}, "students.beta has no model"),
        ({"teachers": [{**TEACHER, "engine": "openai"}]}, "needs endpoint.url"),
        ({"teachers": [{**REMOTE, "engine": "vllm"}]}, "only the engine openai has an endpoint"),
        ({"teachers": [{**REMOTE, "chat": True}]}, "endpoint.api says how an endpoint is asked"),
        ({"students": [{**STUDENT, "judge": {"url": "https://judge/v1"}}]}, "a judge needs both a URL and a model"),
        ({**PAIR, "test": {"teacher": "alpha"}}, "go together"),
        ({**PAIR, "test": {"teacher": "alpha", "student": "nobody"}}, "there is no profile nobody"),
        ({"coordinator": BALANCED}, "LoadBalancer: networkPolicy.clients lets in pods of the namespace only"),
        ({"coordinator": BALANCED, "networkPolicy": {"clients": []}}, "add an ipBlock"),
        (
            {"workloadDefaults": {"gpus": 1, "resourceClaims": [{"name": "gpu", "resourceClaimName": "a"}]}, **PAIR},
            "its GPUs come by gpus or by resourceClaims, not by both",
        ),
        ({"metrics": {"port": 7072}}, "metrics.port: 7072 is where a service listens for calls"),
        ({"fullnameOverride": "r" * 20, "students": [{**STUDENT, "name": "x" * 40}]}, "longer than the 63 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_end_with_their_reason(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(HelmRenderError, match=reason):
        render(values)


def test_either_way_to_scale_is_taken_alone() -> None:
    for kind in BOTH:
        values = copy.deepcopy({**PAIR, "workloadDefaults": {**CPU, kind: {"enabled": True}}})
        assert len(render(values).of("ScaledObject", "HorizontalPodAutoscaler")) == 4


@pytest.mark.parametrize(
    "network",
    [
        {"enabled": False},
        {"clients": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        {"clients": [{"namespaceSelector": {"matchLabels": {"name": "gateways"}}}]},
    ],
)
def test_a_load_balancer_is_taken_where_somebody_gets_in(network: dict[str, Any]) -> None:
    made = render({"coordinator": BALANCED, "networkPolicy": network})
    assert made.one("Service", "rookery-coordinator-api")["spec"]["type"] == "LoadBalancer"


def test_a_profile_overrides_its_defaults_also_with_nothing() -> None:
    values = {
        "workloadDefaults": {"gpus": 1, "replicas": 2, "podDisruptionBudget": {"enabled": True}},
        "teachers": [{**TEACHER, "server": {"gpus": 0, "podDisruptionBudget": {"enabled": False}}}],
    }
    made = render(values)
    limits = {
        m["metadata"]["name"]: m["spec"]["template"]["spec"]["containers"][0].get("resources", {}).get("limits")
        for m in made.of("Deployment")
        if "rookery/profile" in m["metadata"]["labels"]
    }
    assert limits == {"rookery-teacher-alpha": None, "rookery-trainer-alpha": {"nvidia.com/gpu": 1}}
    devices = [
        env for _, container in made.ours() for env in container.get("env", ()) if env["name"] == "ROOKERY_DEVICE"
    ]
    assert devices == [{"name": "ROOKERY_DEVICE", "value": "cuda"}]
    budgets = {m["metadata"]["name"] for m in made.of("PodDisruptionBudget")}
    assert budgets == {"rookery-coordinator", "rookery-trainer-alpha"}


# --- the READMEs and the notes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_readme_makes_the_secrets_that_pods_take(file: Path) -> None:
    text = file.read_text().replace("\\\n", "")
    made = {
        (name, key)
        for name, keys in re.findall(r"kubectl create secret generic (\S+)((?: +--from-literal=\S+)+)", text)
        for key in re.findall(r"--from-literal=([\w.-]+)=", keys)
    }
    taken = {
        (source["secretKeyRef"]["name"], source["secretKeyRef"]["key"])
        for pod in render(PAIR).pods
        for entry in pod["spec"]["containers"][0].get("env", [])
        if "secretKeyRef" in (source := entry.get("valueFrom", {}))
    }
    assert taken <= made <= taken | {("rookery-database", "keda")}


@pytest.mark.parametrize("file", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_readme_gives_the_test_more_time_than_it_may_take(file: Path) -> None:
    (minutes,) = re.findall(r"\$ helm test rookery --timeout (\d+)m\n", file.read_text())
    assert int(minutes) * 60 > DEFAULTS["test"]["seconds"]


def test_the_readme_builds_and_pushes_all_images_to_the_registry_of_the_values() -> None:
    text = READMES[0].read_text()
    services, with_models = re.findall(r"for service in ([\w ]+); do", text)
    assert {f"rookery-{service}" for service in services.split()} == {
        image["repository"] for image in DEFAULTS["images"].values() if isinstance(image, dict)
    }
    assert {*services.split()} - {*with_models.split()} == {"coordinator"}
    assert text.count("docker push ${registry}rookery-$service:0.1.0") == 2
    assert "--set images.registry=$registry" in text


@pytest.mark.parametrize("adapts", [False, True])
def test_the_notes_say_how_registrations_went_and_how_long_a_test_takes(*, adapts: bool) -> None:
    test = {"teacher": "alpha", "student": "beta", "seconds": 3000} if adapts else {}
    notes = render({**PAIR, "test": test}).texts["NOTES.txt"]
    assert "helm --namespace ml test rookery" + (" --timeout 55m" if adapts else "\n") in notes
    assert "--wait --wait-for-jobs" in notes
    (selector,) = set(re.findall(r"get jobs --selector (\S+)", notes))
    labels = dict(pair.split("=") for pair in selector.split(","))
    found = [job for job in render(PAIR).of("Job") if labels.items() <= job["metadata"]["labels"].items()]
    assert len(found) == 2


def test_the_notes_say_how_a_development_database_is_made_again() -> None:
    lines = "rollout restart deployment rookery-coordinator"
    assert lines in render({**PAIR, "dev": {"postgres": {"enabled": True}}}).texts["NOTES.txt"]
    assert lines not in render(PAIR).texts["NOTES.txt"]


def test_the_readme_is_made_of_the_values() -> None:
    assert (HELM / "rookery" / "README.md").read_text() == readme(TEXT), "run python deploy/helm/readme.py"


def test_a_changed_value_or_comment_changes_the_readme() -> None:
    for before, after in (("port: 5432", "port: 5433"), ("# Servers beside each other.", "# Servers.")):
        assert readme(TEXT.replace(before, after)) != readme(TEXT)


def test_every_value_has_a_comment() -> None:
    assert len(DESCRIBED) > 150
    assert [value.path for value in DESCRIBED if value.default and not value.comment] == []


def test_the_readme_says_all_values() -> None:
    said = {value.path: json.loads(value.default) for value in DESCRIBED if value.default}
    for path, default in said.items():
        found = reduce(lambda values, key: values[key], path.split("."), DEFAULTS)
        assert found == default, path
    assert {value.path for value in DESCRIBED if "." not in value.path} == {*DEFAULTS}
