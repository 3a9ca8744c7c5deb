"""What pods are told is what the services' settings know, and what they are told of is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from pydantic_settings import BaseSettings

from rookery_coordinator.settings import CoordinatorSettings, WorkerSettings
from rookery_evaluator.settings import EvaluatorSettings
from rookery_student.settings import StudentSettings
from rookery_teacher.settings import TeacherSettings
from tests.deploy.charts import HELM, VALUES, Manifest, Rendering, component, render, rendering

PREFIX = "ROOKERY_"
SETTINGS: dict[str, type[BaseSettings]] = {
    "rookery-coordinator serve": CoordinatorSettings,
    "rookery-coordinator relay": CoordinatorSettings,
    "rookery-coordinator migrate": CoordinatorSettings,
    "rookery-coordinator worker": WorkerSettings,
    "rookery-teacher serve": TeacherSettings,
    "rookery-teacher trainer": TeacherSettings,
    "rookery-student": StudentSettings,
    "rookery-evaluator": EvaluatorSettings,
}
CERTIFICATES = {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PGSSLROOTCERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"}
OTHERS = {"HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "NCCL_DEBUG", "LANG", *CERTIFICATES}
"""Of libraries."""
SECRETS = {
    "ROOKERY_DATABASE_URL": "postgresql+psycopg://rookery:x@host/rookery",
    "ROOKERY_BROKER_URL": "redis://host:6379/0",
}

PLACES = {
    "coordinator": "rookery-coordinator serve",
    "relay": "rookery-coordinator relay",
    "worker": "rookery-coordinator worker",
    "teacherServer": "rookery-teacher serve",
    "teacherTrainer": "rookery-teacher trainer",
    "studentTrainer": "rookery-student",
    "evaluator": "rookery-evaluator",
}
"""Where the values have `settings`, and of which command."""
STORE = {
    "store_url",
    "s3_endpoint",
    "s3_region",
    "s3_secure",
    "s3_access_key",
    "s3_secret_key",
    "cache_folder",
    "cache_bytes",
}
TLS = {"tls_address", "tls_certificate", "tls_key"}
NOT_SAID: dict[str, set[str]] = {
    "coordinator": {"address", "job_address", "coordinator_target", "job_service_target", "tls_certificate", "tls_key"},
    "relay": {
        "address",
        "job_address",
        "coordinator_target",
        "job_service_target",
        "relays",
        "drain_seconds",
        *TLS,
        *STORE,
    },
    "worker": {"coordinator_target"},
    "teacherServer": {"address", "broker_url", "job_service_target", "stop_seconds"},
    "teacherTrainer": {"address", "openai", "drain_seconds", "coordinator_target"},
    "studentTrainer": {"coordinator_target"},
    "evaluator": {"address", "broker_url", "job_service_target"},
}
"""Fields that nobody may set: ports that the chart's Services have, and what the process does not use."""
NOT_SAID = {place: {*fields, "metrics_host"} for place, fields in NOT_SAID.items()}


def names(kind: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    """The environment variables of a class of settings."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, f"{prefix}{name.upper()}_")
        else:
            yield f"{prefix}{name.upper()}"


def told(container: Manifest) -> dict[str, str]:
    """A container's environment, with something for each secret."""
    return {
        entry["name"]: entry["value"] if "value" in entry else SECRETS.get(entry["name"], "secret")
        for entry in container.get("env", [])
    }


def test_names_are_fields_of_the_settings(rendered: Rendering) -> None:
    for pod, container in rendered.ours():
        found = [entry["name"] for entry in container.get("env", [])]
        assert len(found) == len({*found}), pod["name"]
        if container["command"][0] == "rookery":
            # the command is told by its options
            assert {*found} == (CERTIFICATES if rendered.name == "own certificates" else set())
            continue
        known = {*names(SETTINGS[" ".join(container["command"])])}
        assert {*found} <= known | OTHERS, pod["name"]


def test_settings_take_what_they_are_told(rendered: Rendering, monkeypatch: pytest.MonkeyPatch) -> None:
    for pod, container in rendered.ours():
        if container["command"][0] == "rookery":
            continue
        environment = told(container)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            settings = SETTINGS[" ".join(container["command"])]()
        assert settings.model_dump()["log_level"] == environment["ROOKERY_LOG_LEVEL"], pod["name"]
        for name, value in environment.items():
            if name.startswith(PREFIX):
                assert as_text(settings, name.removeprefix(PREFIX).lower()) in (value, "[secret]"), name


def as_text(settings: BaseModel, field: str) -> str:
    """A setting as the environment says it."""
    if field not in type(settings).model_fields:
        outer, _, field = field.partition("_")
        return as_text(getattr(settings, outer), field)
    value = getattr(settings, field)
    if isinstance(value, SecretStr):
        return "[secret]"
    return str(value).lower() if isinstance(value, bool) else str(int(value) if value == int_of(value) else value)


def int_of(value: object) -> int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else None


def test_settings_of_the_values_are_the_fields_that_the_chart_does_not_say() -> None:
    schema = json.loads((HELM / "rookery" / "values.schema.json").read_text())
    allowed: dict[str, set[str]] = {}
    for place, command in PLACES.items():
        where = schema["$defs"].get(place) or schema["properties"][place]
        allowed[place] = {*where["properties"]["settings"]["properties"]}
        said = fields_said(command)
        assert not allowed[place] & said, place
        assert not NOT_SAID[place] & said, place
        assert allowed[place] | said | NOT_SAID[place] == {*SETTINGS[command].model_fields}, place
    of_profiles = [allowed[place] for place in ("teacherServer", "teacherTrainer", "studentTrainer", "evaluator")]
    for_all = {*schema["$defs"]["workloadDefaults"]["properties"]["settings"]["properties"]}
    assert for_all == set.intersection(*of_profiles)


def fields_said(command: str) -> set[str]:
    """The fields that the chart says by itself, where the values have no `settings`."""
    fields = SETTINGS[command].model_fields
    found: set[str] = set()
    for name in ("a pair", "relays", "traces", "tls", "many profiles"):
        relay = {"enabled": name in ("relays", "traces")}
        values = {**VALUES[name], "relay": relay, "workloadDefaults": {"gpus": 1}}
        for _, container in render(values).ours():
            if " ".join(container["command"]) == command:
                own = {k.removeprefix(PREFIX).lower() for k in told(container) if k.startswith(PREFIX)}
                found |= {k if k in fields else k.partition("_")[0] for k in own}
    return found


def test_a_setting_reaches_the_environment() -> None:
    values: dict[str, Any] = {**VALUES["a pair"], "coordinator": {"settings": {"keep_days": 30}}}
    values["workloadDefaults"] = {"settings": {"adapters_in_memory": 3}}
    values["students"] = [{**values["students"][0], "trainer": {"settings": {"training_memory_bytes": 80_000_000_000}}}]
    made = render(values)
    found = {component(pod): told(container) for pod, container in made.ours()}
    assert found["coordinator"]["ROOKERY_KEEP_DAYS"] == "30"
    assert found["student"]["ROOKERY_TRAINING_MEMORY_BYTES"] == "80000000000"
    for name in ("teacher", "trainer", "student", "evaluator"):
        assert found[name]["ROOKERY_ADAPTERS_IN_MEMORY"] == "3"


def test_targets_are_services_with_those_ports(rendered: Rendering) -> None:
    services = {s["metadata"]["name"]: {p["port"] for p in s["spec"]["ports"]} for s in rendered.of("Service")}
    teachers = [p["name"] for p in rendered.values.get("teachers", [])]
    students = [p["name"] for p in rendered.values.get("students", [])]
    for _, container in rendered.ours():
        environment = told(container)
        targets = [v for k, v in environment.items() if k.endswith("_TARGET")]
        targets += [
            value
            for flag, value in zip(container["command"], container["command"][1:], strict=False)
            if flag == "--server"
        ]
        for target in targets:
            of = teachers if "-teacher-" in target else students
            for profile in of if "{profile}" in target else [""]:
                host, _, port = target.removeprefix("dns:///").format(profile=profile).rpartition(":")
                assert int(port) in services[host], target


def test_defaults_of_the_services_are_the_ports_of_the_chart() -> None:
    ports = {
        component(pod): container["ports"] for pod, container in rendering("a pair").ours() if "ports" in container
    }
    for name, kind in (
        ("coordinator", CoordinatorSettings),
        ("teacher", TeacherSettings),
        ("evaluator", EvaluatorSettings),
    ):
        address = kind.model_fields["address"].default
        assert {"name": "grpc", "containerPort": int(address.rpartition(":")[2])} in ports[name]
    assert {"name": "jobs", "containerPort": 7071} in ports["coordinator"]
    assert CoordinatorSettings.model_fields["job_address"].default.endswith(":7071")


def test_with_relays_the_coordinator_sends_nothing_and_knows_no_broker() -> None:
    for name, relays in (("relays", True), ("a pair", False)):
        found = {component(pod): told(container) for pod, container in rendering(name).ours()}
        assert found["coordinator"].get("ROOKERY_RELAYS", "true") == str(not relays).lower()
        assert ("ROOKERY_BROKER_URL" in found["coordinator"]) != relays
        assert ("relay" in found) == relays


def test_only_the_coordinator_knows_the_database(rendered: Rendering) -> None:
    for pod, container in rendered.ours():
        knows = "ROOKERY_DATABASE_URL" in told(container)
        assert knows == (component(pod) in {"coordinator", "relay", "migration"}), pod["name"]


def test_only_who_asks_for_a_profile_knows_the_public_api(rendered: Rendering) -> None:
    for pod, container in rendered.ours():
        knows = "ROOKERY_COORDINATOR_TARGET" in told(container)
        assert knows == (component(pod) in {"teacher", "evaluator"}), pod["name"]


def test_all_our_pods_trust_the_bundle() -> None:
    made = rendering("own certificates")
    ours = [pod for pod, _ in made.ours()]
    kinds = {"coordinator", "relay", "worker", "teacher", "trainer", "student", "evaluator"}
    assert {component(pod) for pod in ours} == kinds | {"migration", "registration", "test"}
    for pod in ours:
        assert {"name": "ca", "configMap": {"name": "certificates"}} in pod["spec"]["volumes"]
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert {told(container)[name] for name in CERTIFICATES} == {"/etc/rookery/ca/all.pem"}, pod["name"]
            mount = {"name": "ca", "mountPath": "/etc/rookery/ca", "readOnly": True}
            assert mount in container["volumeMounts"], pod["name"]


def test_without_a_bundle_nothing_is_said_of_certificates(rendered: Rendering) -> None:
    if rendered.name != "own certificates":
        assert not [pod["name"] for pod, container in rendered.ours() if CERTIFICATES & {*told(container)}]
        assert "/etc/rookery/ca" not in json.dumps(rendered.manifests)


def test_a_teacher_at_an_endpoint_has_no_trainer_and_the_others_have() -> None:
    made = rendering("many profiles")
    names_ = {m["metadata"]["name"] for m in made.of("Deployment")}
    assert {name for name in names_ if "-trainer-" in name} == {"rookery-trainer-alpha", "rookery-trainer-gamma"}
    container = made.one("Deployment", "rookery-teacher-far")["spec"]["template"]["spec"]["containers"][0]
    assert told(container)["ROOKERY_OPENAI_URL"] == "http://vllm:8000/v1"
    key = [entry for entry in container["env"] if entry["name"] == "ROOKERY_OPENAI_KEY"]
    assert key == [{"name": "ROOKERY_OPENAI_KEY", "valueFrom": {"secretKeyRef": {"name": "far-away", "key": "key"}}}]


def test_the_hub_is_asked_with_the_secrets_token_or_not_at_all() -> None:
    for name, variables in (("many profiles", {"HF_TOKEN"}), ("narrow network", {"HF_HUB_OFFLINE"}), ("a pair", set())):
        for pod, container in rendering(name).ours():
            of_the_hub = {entry["name"]: entry for entry in container.get("env", []) if entry["name"].startswith("HF_")}
            if of_the_hub:
                assert {*of_the_hub} == {"HF_HOME", *variables}, pod["name"]
            assert ("HF_HOME" in of_the_hub) == (component(pod) in {"teacher", "trainer", "student", "evaluator"})
            if "HF_TOKEN" in of_the_hub:
                assert of_the_hub["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
