"""The chart, rendered by Helm itself with many sets of values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import yaml
from helm_python import Chart

from tests.prerequisites import ROOT

HELM = ROOT / "deploy" / "helm"
EXAMPLES = sorted((HELM / "examples").glob("*.yaml"))

Manifest = dict[str, Any]

TEACHER: dict[str, Any] = {"name": "alpha", "model": "tiny", "dtype": "float32"}
STUDENT: dict[str, Any] = {"name": "beta", "model": "tiny", "dtype": "float32"}
REMOTE: dict[str, Any] = {
    "name": "far",
    "engine": "openai",
    "model": "gpt",
    "endpoint": {"url": "http://vllm:8000/v1", "port": 8000, "existingSecret": "far-away"},
}
JUDGE: dict[str, Any] = {"url": "https://judge/v1", "model": "judge", "existingSecret": "judges"}
PAIR: dict[str, Any] = {"teachers": [TEACHER], "students": [STUDENT]}
KEDA: dict[str, Any] = {"keda": {"enabled": True}}
CPU: dict[str, Any] = {"resources": {"requests": {"cpu": 1}}}

VALUES: dict[str, dict[str, Any]] = {
    **{file.stem: yaml.safe_load(file.read_text()) for file in EXAMPLES},
    "defaults": {},
    "a pair": PAIR,
    "tried out": {
        **PAIR,
        "coordinator": {"replicas": 1},
        "dev": {name: {"enabled": True} for name in ("postgres", "redis", "s3")},
        "test": {"teacher": "alpha", "student": "beta"},
    },
    "relays": {**PAIR, "relay": {"enabled": True, "replicas": 3, "settings": {"relay_seconds": 0.05}}},
    "all by keda": {**PAIR, "worker": KEDA, "workloadDefaults": KEDA},
    "all by hpa": {
        **PAIR,
        "coordinator": {"hpa": {"enabled": True}},
        "worker": {"hpa": {"enabled": True}},
        "workloadDefaults": {**CPU, "hpa": {"enabled": True}},
    },
    "no migration hook": {**PAIR, "migrations": {"hook": False}},
    "own certificates": {
        **PAIR,
        "caBundle": {"existingConfigMap": "certificates", "key": "all.pem"},
        "migrations": {"hook": False},
        "relay": {"enabled": True, "env": {"LANG": "C.UTF-8"}},
        "test": {"teacher": "alpha", "student": "beta"},
    },
    "open network": {**PAIR, "networkPolicy": {"enabled": False}},
    "narrow network": {
        **PAIR,
        "hub": {"online": False},
        "networkPolicy": {
            "clients": [],
            "monitoring": [],
            "databasePeers": [{"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.9.0/24"]}}],
            "brokerPeers": [{"ipBlock": {"cidr": "10.2.0.0/16"}}],
            "storePeers": [{"namespaceSelector": {"matchLabels": {"name": "s3"}}}],
        },
    },
    "service monitor": {**PAIR, "metrics": {"monitor": "ServiceMonitor", "port": 9999, "interval": "1m"}},
    "pod monitor": {
        **PAIR,
        "metrics": {
            "monitor": "PodMonitor",
            "monitorLabels": {"release": "prometheus"},
            "rules": True,
            "dashboard": True,
        },
    },
    "traces": {
        **PAIR,
        "relay": {"enabled": True},
        "traces": {"url": "http://collector.observability:4317", "ratio": 0.25},
    },
    "tls": {**PAIR, "coordinator": {"tls": {"existingSecret": "coordinator-tls"}, "serviceType": "ClusterIP"}},
    "many profiles": {
        "teachers": [TEACHER, REMOTE, {"name": "gamma", "model": "s3://models/gamma", "chat": True, "engine": "vllm"}],
        "students": [
            {**STUDENT, "judge": JUDGE},
            {"name": "delta", "model": "hub/delta", "revision": "v2", "limits": {"maxRank": 64, "maxPassage": 9000}},
        ],
        "hub": {"existingSecret": "hub"},
    },
    "claims": {
        "teachers": [{**TEACHER, "modelCache": {"size": "50Gi", "storageClassName": "files"}}],
        "students": [{**STUDENT, "modelCache": {"existingClaim": "models"}}],
    },
    "long waits": {
        **PAIR,
        "preStopSeconds": 20,
        "coordinator": {"drainSeconds": 120.5},
        "workloadDefaults": {"drainSeconds": 600, "stopSeconds": 20},
    },
    "elsewhere": {
        **PAIR,
        "fullnameOverride": "nest",
        "images": {
            "registry": "registry.example.com/ml/",
            "pullSecrets": ["registry"],
            "coordinator": {"digest": f"sha256:{'0' * 64}"},
            "teacher": {"tag": "1.2.3-cuda"},
        },
        "coordinator": {"serviceType": "LoadBalancer", "serviceAnnotations": {"a": "b"}},
        "networkPolicy": {"clients": [{"podSelector": {}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}]},
        "serviceAccounts": {"annotations": {"role": "rookery"}},
        "log": {"level": "DEBUG"},
    },
    "device claims": {
        **PAIR,
        "workloadDefaults": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]},
    },
    "one place": {
        **PAIR,
        "workloadDefaults": {
            "gpus": 2,
            "gpuResource": "amd.com/gpu",
            "sharedMemory": "16Gi",
            "replicas": 3,
            "runtimeClassName": "nvidia",
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "priorityClassName": "high",
            "podAnnotations": {"note": "x"},
            "podLabels": {"kueue.x-k8s.io/queue-name": "lab"},
            "env": {"NCCL_DEBUG": "WARN"},
            "settings": {"torch_threads": 4},
        },
    },
}


@dataclass(frozen=True)
class Rendering:
    """What a set of values makes."""

    name: str
    values: Mapping[str, Any]
    texts: Mapping[str, str]
    """By template."""

    @cached_property
    def manifests(self) -> list[Manifest]:
        """All of them, the tests' and the hooks' too."""
        found: list[Manifest] = []
        for template, text in sorted(self.texts.items()):
            if template.endswith(".yaml"):
                found += [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]
        return found

    def of(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def one(self, kind: str, name: str) -> Manifest:
        found = [manifest for manifest in self.of(kind) if manifest["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name}"
        return found[0]

    @cached_property
    def pods(self) -> list[Manifest]:
        """The templates of all pods, as {metadata, spec, kind and name of what makes them}."""
        found: list[Manifest] = []
        for manifest in self.of("Deployment", "Job", "Pod"):
            pod = manifest if manifest["kind"] == "Pod" else manifest["spec"]["template"]
            maker = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
            found.append({"metadata": pod["metadata"], "spec": pod["spec"], **maker})
        return found

    def ours(self) -> Iterator[tuple[Manifest, Manifest]]:
        """Pods of the services' images, each with its container."""
        for pod in self.pods:
            (container,) = pod["spec"]["containers"]
            if container["command"][0].startswith("rookery") if "command" in container else False:
                yield pod, container


@lru_cache
def chart() -> Chart:
    return Chart.load(HELM / "rookery")


def render(values: Mapping[str, Any], *, name: str = "", revision: int = 1) -> Rendering:
    """Raises HelmValuesError for values that the schema refuses, HelmRenderError for those that the chart does."""
    texts = chart().render(dict(values), name="rookery", namespace="ml", revision=revision)
    return Rendering(
        name=name, values=values, texts={k.removeprefix("rookery/templates/"): v for k, v in texts.items()}
    )


@lru_cache
def rendering(name: str) -> Rendering:
    """Of one of VALUES."""
    return render(VALUES[name], name=name)


def component(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"].get("app.kubernetes.io/component", ""))


def seconds_in(text: str) -> float:
    """Of a preStop's command."""
    return float(text.partition("time.sleep(")[2].rstrip(")"))
