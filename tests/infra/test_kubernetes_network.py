"""infra/kubernetes: who may reach whom. Nothing is open but what is named, and what a setting names is open."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.infra.cluster import Document, component, containers, environment, one, selects, templates, written

BASE = written("base")
MONITORING = written("overlays/monitoring")
PODS = templates(BASE)
SERVICES = {each["metadata"]["name"] for each in BASE if each["kind"] == "Service"}
Edge = tuple[str, str, int | None]


def sides(documents: tuple[Document, ...], direction: str) -> set[Edge]:
    """(from, to, port) that the policies let out of, or into, the pods; a namespace's label stands for its pods."""
    labels = {component(pod): pod["metadata"]["labels"] for pod in PODS.values()}
    peers, ends = ("egress", "to") if direction == "out" else ("ingress", "from")
    found = set()
    for policy in (each["spec"] for each in documents if each["kind"] == "NetworkPolicy"):
        ours = {name for name, each in labels.items() if selects(policy["podSelector"], each)}
        for rule in policy.get(peers, []):
            ports = [port["port"] for port in rule.get("ports", [])] or [None]
            for peer in rule[ends]:
                theirs = set(names_of(peer, labels))
                found |= {
                    (here, there, port) if direction == "out" else (there, here, port)
                    for here in ours for there in theirs for port in ports
                }  # fmt: skip
    return found


def names_of(peer: Document, labels: dict[str, dict[str, str]]) -> Iterator[str]:
    if "ipBlock" in peer:
        yield "outside"
    elif "namespaceSelector" in peer:
        yield " ".join(peer["namespaceSelector"]["matchLabels"].values())
    else:
        yield from (name for name, each in labels.items() if selects(peer["podSelector"], each))


def test_pods_reach_what_they_need_and_nothing_else() -> None:
    inside = {
        *((name, "tracking", 5000) for name in ("inference", "ray", "ship", "training")),
        *((name, "postgres", 5432) for name in ("migrate", "tracking")),
        ("training", "ray", 8265),
        ("ray", "ray", None),
    }
    names = {(component(pod), "kube-system", 53) for pod in PODS.values()}
    outside = {(name, "outside", port) for name in ("ray", "ship") for port in (80, 443)}

    assert sides(BASE, "out") == inside | names | outside
    assert sides(BASE, "in") == inside | {("inference", "inference", 3000)}
    assert sides(MONITORING, "in") == {("monitoring", "inference", 3000), ("monitoring", "training", 8000)}
    everything = one(BASE, "NetworkPolicy", "deny-all")["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_the_outside_is_not_the_house() -> None:
    (rule,) = one(BASE, "NetworkPolicy", "to-outside")["spec"]["egress"]
    block = rule["to"][0]["ipBlock"]
    assert block["cidr"] == "0.0.0.0/0"
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(block["except"])


def test_every_address_in_the_settings_is_a_service_that_may_be_reached_there() -> None:
    ways = {(source, f"{to}:{port}") for source, to, port in sides(BASE, "out") & sides(BASE, "in")}
    # KubeRay names the head's Service after the cluster.
    heads = {f"{each['metadata']['name']}-head-svc": "ray" for each in BASE if each["kind"] == "RayCluster"}
    asked = set()
    for pod in PODS.values():
        for container in containers(pod):
            for value in environment(BASE, container).values():
                for host, port in re.findall(r"(?://|@)([a-z-]+):(\d+)", value):
                    assert host in heads or host in SERVICES
                    asked.add((component(pod), f"{heads.get(host, host)}:{port}"))
    # Jobs are told by the training service.
    assert asked == ways - {("ray", "tracking:5000"), ("ray", "ray:None")}
