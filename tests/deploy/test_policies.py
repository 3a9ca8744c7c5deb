"""What holds of every rendering: safe pods, probes, time to end, who may talk to whom."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from rookery_shared.jobs.worker import SHUTDOWN_SECONDS
from rookery_shared.rpc.server import END_SECONDS
from tests.deploy.charts import STUDENT, VALUES, Manifest, Rendering, component, render, rendering, seconds_in
from tests.prerequisites import ROOT

OTHER = {"image": {"tag": "other"}}
SERVERS = {"coordinator": 7070, "teacher": 7072, "evaluator": 7073}
HELM_SECONDS = 300
"""Helm's own --timeout."""
WITHOUT_HOOK = {"no migration hook", "own certificates", "tried out"}
"""Sets of values whose database is migrated by a job of the release."""


def environment(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}


def selects(selector: dict[str, str], pod: Manifest) -> bool:
    return bool(selector.items() <= pod["metadata"]["labels"].items())


# --- pods -----------------------------------------------------------------------------------------------------------


def unsafe(pod: Manifest) -> Iterator[str]:
    """What is not as the Pod Security Standard `restricted` asks, and a read-only root besides."""
    spec = pod["spec"]
    of_pod = spec.get("securityContext", {})
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host"
    kinds = {"name", "emptyDir", "configMap", "persistentVolumeClaim", "secret", "projected", "downwardAPI"}
    if any(not {*volume} <= kinds for volume in spec.get("volumes", [])):
        yield "mounts the host"
    if of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if of_pod.get("runAsNonRoot") is not True or not of_pod.get("runAsUser", 0) > 0:
        yield "may be root"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield "may become root"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield "has capabilities"
        if context.get("readOnlyRootFilesystem") is not True:
            yield "may write to its image"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield "listens on the host"


def test_pods_are_restricted(rendered: Rendering) -> None:
    for pod in rendered.pods:
        assert not [*unsafe(pod)], pod["name"]


def test_an_unsafe_pod_is_found() -> None:
    pod = {"spec": {"hostNetwork": True, "volumes": [{"name": "x", "hostPath": {}}], "containers": [{}]}}
    assert len([*unsafe(pod)]) == 7


def test_each_component_has_a_service_account_without_a_token(rendered: Rendering) -> None:
    users = defaultdict(set)
    for pod in rendered.pods:
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False, "a Service's name would be taken for a setting"
        users[pod["spec"]["serviceAccountName"]].add(component(pod))
    assert all(len(components) == 1 for components in users.values())
    accounts = {account["metadata"]["name"]: account for account in rendered.of("ServiceAccount")}
    assert {*accounts} == {*users}
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())


def test_a_hook_finds_its_service_account_and_its_policy_before_it() -> None:
    made = rendering("a pair")
    (job,) = [m for m in made.of("Job") if component(m) == "migration"]
    before = [m for m in made.of("ServiceAccount", "NetworkPolicy") if component(m) == "migration"]
    assert len(before) == 2
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    for manifest in before:
        notes = manifest["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert int(notes["helm.sh/hook-weight"]) < int(job["metadata"]["annotations"]["helm.sh/hook-weight"])
    for name in ("no migration hook", "tried out"):  # a database of the release is there only after it
        jobs = [m for m in rendering(name).of("Job") if component(m) == "migration"]
        assert [m["metadata"].get("annotations") for m in jobs] == [None]


def test_jobs_end_and_leave_the_logs_of_what_failed(rendered: Rendering) -> None:
    for job in rendered.of("Job"):
        spec, notes = job["spec"], job["metadata"].get("annotations", {})
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec["backoffLimit"] <= 6
        if "helm.sh/hook" in notes:
            assert notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
            assert spec["activeDeadlineSeconds"] < HELM_SECONDS
            assert "ttlSecondsAfterFinished" not in spec  # Helm removes it
        else:
            assert spec["activeDeadlineSeconds"] <= 900
            assert spec["ttlSecondsAfterFinished"] > 3600  # longer than Helm may wait for it


@pytest.mark.parametrize("name", [name for name in sorted(VALUES) if name not in WITHOUT_HOOK])
def test_with_a_hook_nobody_else_migrates(name: str) -> None:
    assert not [pod["name"] for pod, _ in rendering(name).ours() if "initContainers" in pod["spec"]]


@pytest.mark.parametrize("name", sorted(WITHOUT_HOOK))
def test_without_a_hook_whoever_opens_the_database_migrates_first(name: str) -> None:
    made = rendering(name)
    migrating = {component(pod) for pod, _ in made.ours() if "initContainers" in pod["spec"]}
    assert migrating == {"coordinator"} | ({"relay"} if name == "own certificates" else set())
    for pod, container in made.ours():
        if component(pod) in migrating:
            (migration,) = pod["spec"]["initContainers"]
            assert migration["command"] == ["rookery-coordinator", "migrate"]
            for same in ("image", "imagePullPolicy", "env", "securityContext", "volumeMounts"):
                assert migration[same] == container[same], same
            assert migration["resources"]["limits"]["memory"]


def test_images_are_of_a_version(rendered: Rendering) -> None:
    for pod in rendered.pods:
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert re.search(r"(@sha256:[0-9a-f]{64}|:[\w.-]+)$", container["image"]), container["image"]
            assert not container["image"].endswith(":latest")


def test_images_are_those_of_the_values() -> None:
    made = rendering("elsewhere")
    images = {component(pod): container["image"] for pod, container in made.ours()}
    assert images["coordinator"] == f"registry.example.com/ml/rookery-coordinator@sha256:{'0' * 64}"
    assert images["trainer"] == images["teacher"] == "registry.example.com/ml/rookery-teacher:1.2.3-cuda"
    assert images["student"] == "registry.example.com/ml/rookery-student:0.1.0"
    assert all(pod["spec"]["imagePullSecrets"] == [{"name": "registry"}] for pod in made.pods)
    own = render({"images": {"student": {"digest": f"sha256:{'1' * 64}"}}, "students": [{**STUDENT, "trainer": OTHER}]})
    (student,) = [container for pod, container in own.ours() if component(pod) == "student"]
    assert student["image"] == "rookery-student:other"


def test_a_profile_goes_where_its_gpus_are() -> None:
    made = rendering("one place")
    for pod, container in made.ours():
        if pod["kind"] != "Deployment" or "rookery/profile" not in pod["metadata"]["labels"]:
            assert "runtimeClassName" not in pod["spec"]
            continue
        spec = pod["spec"]
        assert container["resources"]["limits"] == {"amd.com/gpu": 2}
        assert {"name": "ROOKERY_DEVICE", "value": "cuda"} in container["env"], "or it would train on a CPU in silence"
        assert (spec["runtimeClassName"], spec["priorityClassName"]) == ("nvidia", "high")
        assert spec["nodeSelector"] == {"pool": "gpu"}
        assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
        assert spec["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
        memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
        assert memory in spec["volumes"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert pod["metadata"]["annotations"] == {"note": "x"}
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "lab"
        assert environment(container)["NCCL_DEBUG"] == "WARN"
        assert made.one("Deployment", pod["name"])["spec"]["replicas"] == 3


def test_what_is_written_to_is_mounted(rendered: Rendering) -> None:
    for pod, container in rendered.ours():
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        told = environment(container)
        written = {"/tmp", *(told[name] for name in ("ROOKERY_CACHE_FOLDER", "HF_HOME") if name in told)}
        assert written <= {*mounts}, pod["name"]
        assert {*mounts.values()} <= {volume["name"] for volume in pod["spec"]["volumes"]}


def test_claims_that_are_mounted_are_there_or_the_users(rendered: Rendering) -> None:
    made = {claim["metadata"]["name"] for claim in rendered.of("PersistentVolumeClaim")}
    mounted = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in rendered.pods
        for volume in pod["spec"].get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    assert mounted - made == ({"models"} if rendered.name == "claims" else set())
    assert made <= mounted


# --- secrets --------------------------------------------------------------------------------------------------------


def test_no_secret_is_written_down(rendered: Rendering) -> None:
    for pod in rendered.pods:
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            for name, value in environment(container).items():
                if re.search(r"(KEY|TOKEN|PASSWORD|SECRET|DATABASE_URL|BROKER_URL)$", name):
                    own_redis = rendered.name == "tried out" and name == "ROOKERY_BROKER_URL"
                    composed = name == "RCLONE_AUTH_KEY" and value == '"$(ACCESS_KEY),$(SECRET_KEY)"'
                    assert own_redis or composed or "secretKeyRef" in value, f"{pod['name']}: {name}"
    assert not re.search(r"://[^\s\"]*:[^\s\"]*@", json.dumps(rendered.manifests))


# --- life -----------------------------------------------------------------------------------------------------------


def test_probes(rendered: Rendering) -> None:
    """Servers are asked by gRPC, where they listen; workers at their metrics. Jobs and tests end by themselves."""
    for pod, container in rendered.ours():
        probes: list[Any] = [container.get(f"{name}Probe") for name in ("startup", "readiness", "liveness")]
        if pod["kind"] != "Deployment":
            assert probes == [None, None, None]
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert str(ports["metrics"]) == environment(container)["ROOKERY_METRICS_PORT"]
        for probe in probes:
            if component(pod) in SERVERS:
                assert probe["grpc"] == {"port": ports["grpc"]} == {"port": SERVERS[component(pod)]}
            else:
                assert probe["httpGet"] == {"path": "/metrics", "port": "metrics"}


def test_there_is_time_to_load_a_model() -> None:
    made = rendering("a pair")
    for name in ("rookery-teacher-alpha", "rookery-evaluator-beta"):
        deployment = made.one("Deployment", name)["spec"]
        probe = deployment["template"]["spec"]["containers"][0]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800
        assert deployment["progressDeadlineSeconds"] > 1800


def test_there_is_time_to_end(rendered: Rendering) -> None:
    """Before SIGKILL: until SIGTERM, for calls to end, for those that are told to; for workers, to give back jobs."""
    for pod, container in rendered.ours():
        if pod["kind"] != "Deployment":
            continue
        grace, told = pod["spec"]["terminationGracePeriodSeconds"], environment(container)
        if component(pod) in SERVERS:
            stop = seconds_in(container["lifecycle"]["preStop"]["exec"]["command"][-1])
            assert stop == (20 if rendered.name == "long waits" else 5)
            assert grace > stop + float(told["ROOKERY_DRAIN_SECONDS"]) + 3 * END_SECONDS, pod["name"]
        else:
            assert "lifecycle" not in container
            assert grace > max(SHUTDOWN_SECONDS, float(told.get("ROOKERY_STOP_SECONDS", 0)))


def test_rolling_updates_take_nobody_away_first_unless_told() -> None:
    for name in ("a pair", "one-gpu"):
        for deployment in rendering(name).of("Deployment"):
            strategy = deployment["spec"]["strategy"]
            if name == "one-gpu" and "rookery/profile" in deployment["metadata"]["labels"]:
                assert strategy == {"type": "Recreate"}
            else:
                assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_disruption_budgets_are_for_more_than_one(rendered: Rendering) -> None:
    budgets = {budget["metadata"]["name"]: budget["spec"] for budget in rendered.of("PodDisruptionBudget")}
    most = {
        scaler["metadata"]["name"]: scaler["spec"].get("maxReplicas") or scaler["spec"].get("maxReplicaCount")
        for scaler in rendered.of("ScaledObject", "HorizontalPodAutoscaler")
    }
    for deployment in rendered.of("Deployment"):
        name = deployment["metadata"]["name"]
        replicas = most.get(name) or deployment["spec"]["replicas"]
        assert (name in budgets) == (replicas > 1), name
        if name in budgets:
            assert "minAvailable" not in budgets[name]
            assert budgets[name]["selector"] == deployment["spec"]["selector"]


# --- scaling --------------------------------------------------------------------------------------------------------


def test_at_most_one_counts_replicas(rendered: Rendering) -> None:
    scaled: dict[str, list[str]] = defaultdict(list)
    for scaler in rendered.of("ScaledObject", "HorizontalPodAutoscaler"):
        scaled[scaler["spec"]["scaleTargetRef"]["name"]].append(scaler["kind"])
    deployments = {m["metadata"]["name"]: m["spec"] for m in rendered.of("Deployment")}
    assert {*scaled} <= {*deployments}
    for name, spec in deployments.items():
        assert len(scaled[name]) + ("replicas" in spec) == 1, f"{name}: {scaled[name]}, {spec.get('replicas')}"


def test_all_workloads_of_a_profile_can_scale() -> None:
    keda, hpa = rendering("all by keda"), rendering("all by hpa")
    ours = {m["metadata"]["name"] for m in rendering("a pair").of("Deployment")}
    assert {m["metadata"]["name"] for m in keda.of("ScaledObject")} == ours - {"rookery-coordinator"}
    assert {m["metadata"]["name"] for m in hpa.of("HorizontalPodAutoscaler")} == ours


def test_keda_may_read_the_database(rendered: Rendering) -> None:
    for scaler in rendered.of("ScaledObject"):
        (trigger,) = scaler["spec"]["triggers"]
        login = rendered.one("TriggerAuthentication", trigger["authenticationRef"]["name"])
        (secret,) = login["spec"]["secretTargetRef"]
        assert secret == {"parameter": "connection", "name": "rookery-database", "key": "keda"}


# --- selectors ------------------------------------------------------------------------------------------------------


def test_deployments_and_services_select_their_own_pods(rendered: Rendering) -> None:
    for deployment in rendered.of("Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert [p["name"] for p in rendered.pods if selects(selector, p)] == [deployment["metadata"]["name"]]
    for service in rendered.of("Service"):
        chosen = [pod for pod in rendered.pods if selects(service["spec"]["selector"], pod)]
        assert chosen
        for port in service["spec"]["ports"]:
            for pod in chosen:
                open_ = pod["spec"]["containers"][0]["ports"]
                wanted = port.get("targetPort", port["port"])
                assert wanted in {p["name"] for p in open_} | {p["containerPort"] for p in open_}


@pytest.mark.parametrize(("name", "kind"), [("pod monitor", "PodMonitor"), ("service monitor", "ServiceMonitor")])
def test_monitors_find_all_deployments_of_ours(name: str, kind: str) -> None:
    made = rendering(name)
    (monitor,) = made.of(kind)
    selector = monitor["spec"]["selector"]["matchLabels"]
    if kind == "ServiceMonitor":
        (service,) = [s for s in made.of("Service") if selects(selector, s)]
        selector = service["spec"]["selector"]
    ours = {pod["name"] for pod, _ in made.ours() if pod["kind"] == "Deployment"}
    assert {pod["name"] for pod in made.pods if selects(selector, pod)} == ours


def test_devices_may_be_had_by_claims() -> None:
    for pod, container in rendering("device claims").ours():
        claims = pod["spec"].get("resourceClaims", [])
        assert bool(claims) == (pod["kind"] == "Deployment" and "rookery/profile" in pod["metadata"]["labels"])
        asked = container.get("resources", {}).get("claims", [])
        assert [claim["name"] for claim in asked] == [claim["name"] for claim in claims]
        assert ("ROOKERY_DEVICE" in environment(container)) == bool(claims)


def test_alerts_and_dashboard_are_those_of_the_repository() -> None:
    made = rendering("pod monitor")
    (rules,), (config,) = made.of("PrometheusRule"), made.of("ConfigMap")
    assert rules["spec"] == yaml.safe_load((ROOT / "deploy" / "dashboards" / "alerts.yaml").read_text())
    assert json.loads(config["data"]["rookery.json"]) == json.loads(
        (ROOT / "deploy" / "dashboards" / "rookery.json").read_text()
    )
    assert rules["metadata"]["labels"]["release"] == "prometheus"
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert not rendering("service monitor").of("PrometheusRule")


def test_headless_services_are_named_as_callers_look_for_them() -> None:
    services = {s["metadata"]["name"]: s["spec"] for s in rendering("a pair").of("Service")}
    assert services["rookery-teacher-alpha"]["ports"][0]["port"] == 7072
    assert services["rookery-evaluator-beta"]["ports"][0]["port"] == 7073
    assert {spec["clusterIP"] for spec in services.values()} == {"None"}
    assert {*VALUES} >= {"one-gpu", "three-gpus", "spot-students", "remote-teacher"}
