"""infra/kubernetes: valid, complete in itself, hardened, and no more open than it must be."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml

from tests.infra.cluster import (
    KUBERNETES,
    ROOT,
    Document,
    built,
    component,
    containers,
    environment,
    one,
    selects,
    templates,
    written,
)
from tests.infra.schemas import problem_of

BASE = written("base")
MONITORING = written("overlays/monitoring")
PODS = templates(BASE)
NAMES = {f"{kind}/{name}" for each in BASE for kind, name in [(each["kind"], each["metadata"]["name"])]}


def problems(documents: tuple[Document, ...]) -> dict[str, str]:
    found = {f"{each['kind']} {each['metadata']['name']}": problem_of(each) for each in documents}
    assert len(found) == len(documents), "two objects have one name"
    return {name: problem for name, problem in found.items() if problem}


@pytest.mark.parametrize("directory", ["base", "overlays/gpu", "overlays/monitoring"])
def test_what_kustomize_builds_keeps_to_the_published_schemas(directory: str) -> None:
    assert problems(built(directory)) == {}


def test_what_is_written_keeps_to_the_published_schemas_without_kustomize() -> None:
    assert problems((*BASE, *MONITORING)) == {}


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "inference", "spec.template.spec.containers.0.redinessProbe", {}),
        ("Deployment", "inference", "spec.template.spec.containers.0.resources.limits.cpu", [1]),
        ("Deployment", "inference", "spec.template.spec.containers.0.securityContext.runAsRoot", False),
        ("HorizontalPodAutoscaler", "inference", "spec.maxReplicas", "8"),
        ("PodDisruptionBudget", "inference", "spec.maxUnavailible", 1),
        ("StatefulSet", "postgres", "apiVersion", "apps/v1beta1"),
        ("NetworkPolicy", "ray", "spec.ingress.0.form", []),
        ("RayCluster", "ray", "spec.workerGroupSpec", []),
        ("RayCluster", "ray", "spec.workerGroupSpecs.0.replicas", "1"),
        ("RayCluster", "ray", "spec.workerGroupSpecs.0.template.spec.containers.0.image", 1),
        ("RayCluster", "ray", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("RayCluster", "ray", "spec.headGroupSpec.template.spec.container", []),
        ("ServiceMonitor", "inference", "spec.endpoints.0.intervall", "15s"),
        ("ServiceMonitor", "inference", "spec.endpoints.0.interval", 15),
        ("PrometheusRule", "stride", "spec.groups.0.rules.0.alerts", "Down"),
        ("PrometheusRule", "stride", "spec.groups.0.rules.0.labels.severity", 1),
    ],
)
def test_a_document_that_is_wrong_is_noticed(kind: str, name: str, path: str, value: object) -> None:
    document = copy.deepcopy(one((*BASE, *MONITORING), kind, name))
    assert problem_of(document) is None
    *way, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    place: Any = document
    for step in way:
        place = place[step]
    place[last] = value

    assert problem_of(document) is not None


def test_what_is_built_is_what_is_written() -> None:
    """The other tests read the files, which needs no kustomize; it adds the namespace and ConfigMaps' hashes alone."""

    def plain(each: Document) -> str:
        content = json.loads(re.sub(r"(-settings)-[a-z0-9]{10}\b", r"\1", json.dumps(each)))
        if each["kind"] != "Namespace":
            assert content["metadata"].pop("namespace") == "stride"
        return json.dumps(content, sort_keys=True)

    for directory, documents in (("base", BASE), ("overlays/monitoring", MONITORING)):
        wanted = sorted(json.dumps(each, sort_keys=True) for each in documents)
        assert sorted(plain(each) for each in built(directory)) == wanted


def test_every_service_leads_to_one_kind_of_pod_and_a_port_that_it_has() -> None:
    services = [each for each in BASE if each["kind"] == "Service"]
    assert {each["metadata"]["name"] for each in services} == {"postgres", "tracking", "training", "inference"}
    for service in services:
        (pod,) = (pod for pod in PODS.values() if selects(service["spec"]["selector"], pod["metadata"]["labels"]))
        assert component(pod) == service["metadata"]["name"]
        ports = {port["name"]: port["containerPort"] for each in containers(pod) for port in each.get("ports", [])}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("each", [each for each in BASE if each["kind"] in ("Deployment", "StatefulSet")])
def test_what_makes_pods_finds_its_own_and_no_others(each: Document) -> None:
    selector = each["spec"]["selector"]
    assert [name for name, pod in PODS.items() if selects(selector, pod["metadata"]["labels"])] == [
        each["metadata"]["name"]
    ]
    if each["kind"] == "StatefulSet":
        assert f"Service/{each['spec']['serviceName']}" in NAMES


def test_inference_is_scaled_spread_and_kept_while_nodes_are_drained() -> None:
    deployment, budget = one(BASE, "Deployment", "inference"), one(BASE, "PodDisruptionBudget", "inference")
    autoscaler = one(BASE, "HorizontalPodAutoscaler", "inference")["spec"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert autoscaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "inference"}
    assert "replicas" not in deployment["spec"], "an apply would undo what the autoscaler did"
    assert 2 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]
    assert selects(budget["spec"]["selector"], labels)
    assert budget["spec"]["maxUnavailable"] < autoscaler["minReplicas"]
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(selects(each["labelSelector"], labels) for each in spread)


def test_what_holds_state_is_one_and_never_two_at_a_time() -> None:
    for name in ("tracking", "training"):
        spec = one(BASE, "Deployment", name)["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert one(BASE, "StatefulSet", "postgres")["spec"]["replicas"] == 1


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_mounts_is_there(name: str) -> None:
    pod = PODS[name]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values()
              if "persistentVolumeClaim" in volume}  # fmt: skip
    assert {f"PersistentVolumeClaim/{claim}" for claim in claims.values()} <= NAMES
    made = {
        each["metadata"]["name"] for owner in BASE for each in owner.get("spec", {}).get("volumeClaimTemplates", [])
    }
    mounted = {mount["name"] for each in containers(pod) for mount in each["volumeMounts"]}
    assert set(volumes) <= mounted <= set(volumes) | made
    for container in containers(pod):
        assert {f"ConfigMap/{source['configMapRef']['name']}" for source in container.get("envFrom", [])} <= NAMES
        paths = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert len(paths) == len(set(paths))


def secret_files(pod: Document, container: Document) -> set[str]:
    """The paths of the Secrets' files in a container; infra/kubernetes/secrets.sh says which a Secret holds."""
    made = dict(re.findall(r"^make (\w+) (\w+)$", (KUBERNETES / "secrets.sh").read_text(), re.MULTILINE))
    assert made
    held = {}
    for volume in pod["spec"]["volumes"]:
        if "secret" in volume:
            held[volume["name"]] = [volume["secret"]["secretName"]]
        elif "projected" in volume:
            held[volume["name"]] = [source["secret"]["name"] for source in volume["projected"]["sources"]]
    return {
        f"{mount['mountPath']}/{made[secret]}"
        for mount in container["volumeMounts"]
        for secret in held.get(mount["name"], [])
    }


@pytest.mark.parametrize("name", PODS)
def test_every_secret_that_a_setting_names_lies_there_as_a_file_and_no_other_is_mounted(name: str) -> None:
    for container in containers(PODS[name]):
        variables = environment(BASE, container)
        if container["image"].startswith("stride-tracking"):
            from services.tracking.__main__ import _PASSWORD_FILE  # where it looks without being told

            variables["STRIDE_DATABASE_PASSWORD_FILE"] = _PASSWORD_FILE
        named = {value for value in variables.values() if value.startswith("/run/")}
        assert named == secret_files(PODS[name], container)
    assert "secretKeyRef" not in str(PODS[name]), "a secret in the environment is seen by whoever sees the pod"


def test_no_secret_stands_in_the_tree() -> None:
    files = [path for path in KUBERNETES.rglob("*") if path.is_file()]
    assert len(files) >= 15
    for path in files:
        assert not re.search(r"^kind: Secret$|secretGenerator", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("directory", ["base", "overlays/gpu"])
def test_every_pod_is_held_to_the_restricted_standard_and_more(directory: str) -> None:
    documents = built(directory)
    labels = one(documents, "Namespace", "stride")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert set(templates(documents)) == set(PODS)
    for name, pod in templates(documents).items():
        spec, of_pod = pod["spec"], pod["spec"]["securityContext"]
        assert of_pod["runAsNonRoot"] is True, name
        assert of_pod["runAsUser"] > 0, name
        assert of_pod["fsGroup"] == of_pod["runAsGroup"] == of_pod["runAsUser"], name
        assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert f"ServiceAccount/{spec['serviceAccountName']}" in NAMES, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec), name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "projected", "secret"}, name
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], name
        for each in containers(pod):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"cpu", "memory", "ephemeral-storage"} <= set(each["resources"]["limits"]), name
            assert set(each["resources"]["requests"]) == {"cpu", "memory", "ephemeral-storage"}, name
            assert "/tmp" in {mount["mountPath"] for mount in each["volumeMounts"]}, name  # noqa: S108
    for account in (each for each in documents if each["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_what_runs_for_long_says_how_it_is_and_a_restart_asks_for_less() -> None:
    """A pod that waits for another one is not ready; only one that is beyond help is restarted."""
    running = {name: pod for name, pod in PODS.items() if name not in ("migrate", "ship")}
    assert len(running) == 6
    for name, pod in running.items():
        (container,) = pod["spec"]["containers"]
        ready, alive = container["readinessProbe"], container["livenessProbe"]
        assert alive["failureThreshold"] * alive["periodSeconds"] >= 60, name
        if not name.startswith("ray/"):
            assert {k: ready[k] for k in ("httpGet", "exec") if k in ready} != {
                k: alive[k] for k in ("httpGet", "exec") if k in alive
            }, name
            start = container["startupProbe"]
            assert start["failureThreshold"] * start["periodSeconds"] >= 120, name


def test_prometheus_asks_the_pods_by_a_port_they_have_with_a_key_that_is_made() -> None:
    made = re.findall(r"^make (\w+) (\w+)$", (KUBERNETES / "secrets.sh").read_text(), re.MULTILINE)
    monitors = [each for each in MONITORING if each["kind"] == "ServiceMonitor"]
    scraped = yaml.safe_load((ROOT / "infra/monitoring/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert {each["metadata"]["name"] for each in monitors} == {each["job_name"] for each in scraped} - {"prometheus"}
    for monitor in monitors:
        labels = [each for each in BASE if each["kind"] == "Service"
                  and selects(monitor["spec"]["selector"], each["metadata"]["labels"])]  # fmt: skip
        (service,) = labels
        # The alert rules know a pod by this label.
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == monitor["metadata"]["name"]
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        credentials = endpoint["authorization"]["credentials"]
        assert (credentials["name"], credentials["key"]) in made


def test_the_alert_rules_are_those_of_the_monitoring_stack() -> None:
    def rules(groups: list[Document]) -> list[Document]:
        found = copy.deepcopy(groups)
        for group in found:
            for rule in group["rules"]:
                action = rule["annotations"]["action"]
                rule["annotations"]["action"] = re.sub(r"`(docker compose|kubectl) [^`]*`", "`command`", action)
        return found

    ours = one(MONITORING, "PrometheusRule", "stride")["spec"]["groups"]
    theirs = yaml.safe_load((ROOT / "infra/monitoring/prometheus/rules.yml").read_text())["groups"]

    assert rules(ours) == rules(theirs)
    assert "docker" not in str(ours)
