"""The network policies let through what the processes are told to call, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.charts import JUDGE, PAIR, REMOTE, STUDENT, Manifest, Rendering, component, render, rendering

TO: dict[str, set[tuple[str, int]]] = {
    "coordinator": set(),
    "relay": set(),
    "worker": {("coordinator", 7071), ("teacher", 7072), ("evaluator", 7073)},
    "teacher": {("coordinator", 7070)},
    "trainer": {("coordinator", 7071)},
    "student": {("coordinator", 7071)},
    "evaluator": {("coordinator", 7070)},
    "registration": {("coordinator", 7070)},
    "test": {("coordinator", 7070)},
    "migration": set(),
}
"""Whom each component calls."""
OUTSIDE = {"ROOKERY_DATABASE_URL": 5432, "ROOKERY_BROKER_URL": 6379, "ROOKERY_STORE_URL": 443}
"""What a process that is told it may reach elsewhere."""
PORTS = (7070, 7071, 7072, 7073)


def matches(selector: Manifest, pod: Manifest) -> bool:
    return bool(selector.get("matchLabels", {}).items() <= pod["metadata"]["labels"].items())


def policies_of(made: Rendering, pod: Manifest) -> list[Manifest]:
    return [p["spec"] for p in made.of("NetworkPolicy") if matches(p["spec"]["podSelector"], pod)]


def rules(made: Rendering, pod: Manifest, direction: str) -> Iterator[Any]:
    for policy in policies_of(made, pod):
        yield from policy.get(direction, [])


def lets_through(made: Rendering, pod: Manifest, direction: str, other: Manifest, port: int) -> bool:
    """Whether a pod may be talked to by (ingress), or talk to (egress), another of the namespace."""
    side = "from" if direction == "ingress" else "to"
    return any(
        port in [p["port"] for p in rule["ports"]]
        and (
            side not in rule or any(matches(peer["podSelector"], other) for peer in rule[side] if "podSelector" in peer)
        )
        for rule in rules(made, pod, direction)
    )


def may_call(made: Rendering, caller: Manifest, server: Manifest, port: int) -> bool:
    to = lets_through(made, caller, "egress", server, port)
    return to and lets_through(made, server, "ingress", caller, port)


def test_all_pods_are_denied_all_and_have_a_policy_of_their_own(rendered: Rendering) -> None:
    if rendered.name == "open network":
        assert rendered.of("NetworkPolicy") == []
        return
    (denial,) = [p for p in rendered.of("NetworkPolicy") if p["metadata"]["name"].endswith("-default-deny")]
    assert not {"ingress", "egress"} & {*denial["spec"]}
    for pod in rendered.pods:
        assert matches(denial["spec"]["podSelector"], pod)
        own = [policy for policy in policies_of(rendered, pod) if policy != denial["spec"]]
        assert len(own) == 1, pod["name"]
        assert own[0]["policyTypes"] == ["Ingress", "Egress"]
        assert own[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == component(pod)


@pytest.mark.parametrize("name", ["many profiles", "relays", "narrow network"])
def test_components_reach_whom_they_call_and_nobody_else(name: str) -> None:
    made = rendering(name)
    ours = [pod for pod, _ in made.ours()]
    servers = [pod for pod in ours if pod["kind"] == "Deployment"]
    for caller in ours:
        for server in servers:
            for port in PORTS:
                wanted = (component(server), port) in TO[component(caller)]
                found = may_call(made, caller, server, port)
                assert found == wanted, f"{caller['name']} to {server['name']}:{port}"


def test_components_reach_what_they_are_told_of_outside_and_nothing_else() -> None:
    made = rendering("narrow network")
    for pod, container in made.ours():
        told = {entry["name"] for entry in container.get("env", [])}
        wanted = {port for name, port in OUTSIDE.items() if name in told}
        peers = [rule for rule in rules(made, pod, "egress") if not any("podSelector" in p for p in rule.get("to", []))]
        found = {p["port"] for rule in peers for p in rule["ports"]} - {53}
        assert found == wanted, pod["name"]
        assert all(rule.get("to") for rule in peers if {53} != {p["port"] for p in rule["ports"]}), pod["name"]


def test_clients_reach_tls_where_there_is_some() -> None:
    stranger = {"metadata": {"labels": {"app": "notebook"}}}
    for name, wanted in (("tls", True), ("a pair", False)):
        made = rendering(name)
        for pod, _ in made.ours():
            reached = lets_through(made, pod, "ingress", stranger, 7443)
            assert reached == (wanted and component(pod) == "coordinator"), pod["name"]
            plain = lets_through(made, pod, "ingress", stranger, 7070)
            assert plain == (not wanted and component(pod) == "coordinator"), pod["name"]
    ports = {
        port["name"]: port["port"]
        for port in rendering("tls").one("Service", "rookery-coordinator-api")["spec"]["ports"]
    }
    assert ports == {"grpcs": 7443}, "where there is TLS, nobody from outside comes without"
    [coordinator] = [pod for pod in rendering("tls").pods if component(pod) == "coordinator"]
    [volume] = [volume for volume in coordinator["spec"]["volumes"] if volume["name"] == "tls"]
    assert volume["secret"] == {"secretName": "coordinator-tls"}


@pytest.mark.parametrize(
    ("traces", "port"),
    [
        ({"url": "http://collector:4317"}, 4317),
        ({"url": "https://collector"}, 443),
        ({"url": "http://collector:80", "port": 4317}, 4317),
    ],
)
def test_those_who_have_spans_reach_their_collector(traces: dict[str, Any], port: int) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"name": "observability"}}}]
    made = render({**PAIR, "traces": traces, "networkPolicy": {"tracesPeers": peers}})
    for pod, container in made.ours():
        told = "ROOKERY_TRACES_URL" in {entry["name"] for entry in container.get("env", [])}
        reach = [r["ports"] for r in rules(made, pod, "egress") if r.get("to") == peers]
        assert reach == ([[{"protocol": "TCP", "port": port}]] if told else []), pod["name"]
        assert told == (pod["kind"] == "Deployment"), pod["name"]


def test_only_those_with_a_model_reach_the_hub() -> None:
    made = rendering("many profiles")
    for pod, container in made.ours():
        hub = [r for r in rules(made, pod, "egress") if "to" not in r and [p["port"] for p in r["ports"]] == [443]]
        told = {entry["name"] for entry in container.get("env", [])}
        judge, store = "ROOKERY_JUDGE_URL" in told, "ROOKERY_STORE_URL" in told
        loads = "HF_HOME" in told and "ROOKERY_OPENAI_URL" not in told
        assert len(hub) == store + loads + judge, pod["name"]


def test_an_endpoint_is_reached_by_its_teacher_alone() -> None:
    made = rendering("many profiles")
    reaching = {
        pod["name"]
        for pod in made.pods
        if any(8000 in [p["port"] for p in rule["ports"]] for rule in rules(made, pod, "egress"))
    }
    assert reaching == {"rookery-teacher-far"}


@pytest.mark.parametrize(
    ("url", "said", "port"),
    [
        ("https://there/v1", 0, 443),
        ("http://there/v1", 0, 80),
        ("http://there:8000/v1", 0, 8000),
        ("https://[2001:db8::1]:8443/v1", 0, 8443),
        ("https://[2001:db8::1]/v1", 0, 443),
        ("http://a-service/v1", 8000, 8000),
    ],
)
def test_an_endpoints_port_is_its_urls_unless_said_otherwise(url: str, said: int, port: int) -> None:
    made = render(
        {
            "teachers": [{**REMOTE, "endpoint": {"url": url, "port": said}}],
            "students": [{**STUDENT, "judge": {**JUDGE, "url": url, "port": said}}],
            "store": {"endpoint": "s3:9000", "port": 9999},
            "hub": {"online": False},
        }
    )
    for pod in made.pods:
        if component(pod) in {"teacher", "evaluator"}:
            assert outside(made, pod) == {port, 9999}


@pytest.mark.parametrize(
    ("store", "port"),
    [
        ({"endpoint": "s3.eu-central-1.amazonaws.com"}, 443),
        ({"endpoint": "minio", "secure": False}, 80),
        ({"endpoint": "minio:9000"}, 9000),
        ({"endpoint": "minio:443", "port": 9000}, 9000),
    ],
)
def test_the_stores_port_is_its_endpoints_unless_said_otherwise(store: dict[str, Any], port: int) -> None:
    made = render({"store": store, "relay": {"enabled": True}})
    (coordinator,) = [pod for pod in made.pods if component(pod) == "coordinator"]
    assert outside(made, coordinator) == {5432, port}


def test_the_hub_may_be_one_place_or_none() -> None:
    for values, wanted in (
        ({}, True),
        ({"hub": {"online": False}}, False),
        ({"networkPolicy": {"hubPeers": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]}}, False),
    ):
        made = render({**PAIR, "store": {"endpoint": "minio:9000"}, **values})
        for pod in made.pods:
            if component(pod) in ("student", "trainer", "evaluator"):
                assert (443 in outside(made, pod)) == wanted, pod["name"]


def outside(made: Rendering, pod: Manifest) -> set[int]:
    """The ports at which a pod may talk to anywhere, but for names."""
    return {p["port"] for rule in rules(made, pod, "egress") if "to" not in rule for p in rule["ports"]} - {53}


def test_clients_and_monitoring_are_let_in_as_the_values_say() -> None:
    stranger = {"metadata": {"labels": {"app": "notebook"}}}
    for name, wanted in (("a pair", True), ("narrow network", False)):
        made = rendering(name)
        for pod, container in made.ours():
            if pod["kind"] != "Deployment":
                continue
            is_coordinator = component(pod) == "coordinator"
            assert lets_through(made, pod, "ingress", stranger, 7070) == (wanted and is_coordinator), pod["name"]
            assert not lets_through(made, pod, "ingress", stranger, 7071)
            (port,) = [p["containerPort"] for p in container["ports"] if p["name"] == "metrics"]
            scraped = [r for r in rules(made, pod, "ingress") if port in [p["port"] for p in r["ports"]]]
            assert bool(scraped) == wanted
            assert all("namespaceSelector" in peer for rule in scraped for peer in rule["from"])


def test_development_servers_are_reached_by_those_who_are_told_of_them() -> None:
    made = rendering("tried out")
    servers = {"postgres": ("ROOKERY_DATABASE_URL", 5432), "redis": ("ROOKERY_BROKER_URL", 6379)}
    servers["s3"] = ("ROOKERY_STORE_URL", 9000)
    for name, (variable, port) in servers.items():
        (server,) = [pod for pod in made.pods if component(pod) == name]
        for pod, container in made.ours():
            told = variable in {entry["name"] for entry in container.get("env", [])}
            assert may_call(made, pod, server, port) == told, f"{pod['name']} to {name}"
