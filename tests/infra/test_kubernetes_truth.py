"""infra/kubernetes says what is true of the sources: images, commands, variables, probes and times."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.cluster import ROOT, Document, built, component, containers, environment, one, templates, written

BASE = written("base")
PODS = templates(BASE)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DOCKERFILE = (ROOT / "infra/images/Dockerfile").read_text()
OF_COMPOSE = {name: COMPOSE["training" if name.startswith("ray/") else name] for name in PODS}
"""The service of docker-compose.yml that a pod is; Ray's are the training service's, which has its own head there."""


def stage(name: str) -> str:
    """The last part of an image's recipe."""
    return next(
        part
        for part in re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
        if part.split("\n")[0].endswith(f" AS {name}")
    )


def command(pod: str) -> list[str]:
    """What docker compose runs."""
    service = OF_COMPOSE[pod]
    if "command" in service:
        return [word for word in service["command"] if not re.fullmatch(r"--\w+=\$\{.*\}", word)]
    found = re.search(r"^CMD (\[.*\])$", stage(service["build"]["target"]), re.MULTILINE)
    assert found is not None
    return list(yaml.safe_load(found[1]))


def test_the_pods_are_the_services_of_compose_and_ray_s() -> None:
    not_here = {"secrets", "prometheus", "grafana"}  # secrets.sh, and the monitoring that a cluster has already
    assert set(COMPOSE) - not_here == {name for name in PODS if "/" not in name}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_s_image_is_that_of_compose(name: str) -> None:
    image = OF_COMPOSE[name]["image"].replace("${STRIDE_TAG:-local}", "local")
    assert {each["image"] for each in containers(PODS[name])} == {image}


@pytest.mark.parametrize("name", [name for name in PODS if "/" not in name])
def test_a_pod_runs_what_the_container_runs(name: str) -> None:
    (container,) = PODS[name]["spec"]["containers"]
    assert "command" not in container, "the image's entrypoint stays"
    if "args" in container:
        assert [word for word in container["args"] if not word.startswith("--recipe=")] == command(name)
    else:
        # In compose Postgres' command says how it logs, where nothing else gathers what pods write.
        assert name == "postgres" or "command" not in OF_COMPOSE[name]


def test_a_pod_listens_where_the_image_says() -> None:
    for name in ("tracking", "training", "inference"):
        (container,) = PODS[name]["spec"]["containers"]
        assert [port["containerPort"] for port in container["ports"]] == [
            int(port) for port in re.findall(r"^EXPOSE (\d+)", stage(name), re.MULTILINE)
        ]


def test_memory_is_limited_as_in_compose() -> None:
    for name in ("postgres", "migrate", "tracking", "ship", "inference"):
        limit = re.search(r"(\d+)g\}?$", OF_COMPOSE[name]["mem_limit"])
        assert limit is not None
        assert PODS[name]["spec"]["containers"][0]["resources"]["limits"]["memory"] == f"{limit[1]}Gi", name
    # Here a job is not in the training service's own container.
    assert PODS["ray/workers"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "8Gi"


def package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


SOURCES = {
    "stride-inference": ("contracts", "services/inference"),
    "stride-tracking": ("contracts", "services/tracking"),
    "stride-training": ("contracts", "services/training", "pipelines"),
}
NOT_OURS = {
    "NVIDIA_DRIVER_CAPABILITIES",  # NVIDIA's container toolkit
    "OMP_NUM_THREADS",  # torch
    *("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD_FILE", "PGDATA"),  # the image of Postgres
}


@pytest.mark.parametrize("directory", ["base", "overlays/gpu"])
def test_every_variable_is_one_that_the_sources_read(directory: str) -> None:
    documents = built(directory)
    checked = set()
    for pod in templates(documents).values():
        for container in containers(pod):
            for name in set(environment(documents, container)) - NOT_OURS:
                rooms = SOURCES[container["image"].partition(":")[0]]
                where = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
                if component(pod) == "ray":  # these pods run Ray; what a job reads comes with the job
                    where.append(package("ray") / "dashboard/consts.py")
                assert any(f'"{name}"' in path.read_text() for path in where), f"{name} is read by nobody in {rooms}"
                checked.add(name)
    assert {"STRIDE_API_KEYS_FILE", "STRIDE_DATABASE", "STRIDE_JOBS_CPUS", "RAY_AUTH_MODE"} <= checked


@pytest.mark.parametrize("directory", ["base", "overlays/gpu"])
def test_the_services_take_their_settings(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.inference import settings as of_inference
    from services.tracking.__main__ import server_of
    from services.training.jobs import settings as of_jobs

    documents = built(directory)
    monkeypatch.setenv("STRIDE_HOME", "/var/lib/stride")
    pods = {name: environment(documents, pod["spec"]["containers"][0]) for name, pod in templates(documents).items()}

    inference = of_inference.read(pods["inference"])
    assert inference.api_keys_file is not None
    assert inference.require_gpu is (directory == "overlays/gpu")
    jobs = of_jobs.read(pods["training"], host="0.0.0.0", port=8000)  # noqa: S104
    assert jobs.keys_file is not None
    tracking = server_of(pods["tracking"])
    assert tracking.proxied == "/var/lib/stride/artifacts"
    address = f"tracking:{tracking.port}"
    assert inference.tracking_uri == jobs.tracking_uri == f"http://{address}"
    assert address in tracking.names  # else it would answer 403


@pytest.mark.parametrize("directory", ["base", "overlays/gpu"])
def test_a_job_fits_a_worker_of_ray_and_there_are_as_many_at_once(directory: str) -> None:
    documents = built(directory)
    cluster = one(documents, "RayCluster", "ray")["spec"]
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    jobs = environment(documents, templates(documents)["training"]["spec"]["containers"][0])

    assert jobs["STRIDE_JOBS_CPUS"] == limits["cpu"]
    assert jobs.get("STRIDE_JOBS_GPUS") == limits.get("nvidia.com/gpu")
    assert int(jobs["STRIDE_JOBS_AT_ONCE"]) == group["replicas"] <= group["maxReplicas"]
    # The head takes no job: with it would go all the others.
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in str(cluster["headGroupSpec"])
    assert limits["memory"] > "0"


def test_ray_is_the_version_of_the_lock_and_the_service_uses_its_dashboard() -> None:
    lock = (ROOT / "services/training/requirements.txt").read_text()
    version = re.search(r"^ray(?:\[.*\])?==([\d.]+)", lock, re.MULTILINE)
    assert version is not None
    cluster = one(BASE, "RayCluster", "ray")["spec"]
    assert cluster["rayVersion"] == version[1]
    head = PODS["ray/head"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    constants = (package("ray") / "_private/ray_constants.py").read_text()
    assert f"DEFAULT_DASHBOARD_PORT = {ports['dashboard']}\n" in constants
    assert f"DEFAULT_PORT = {ports['gcs-server']}\n" in constants
    jobs = environment(BASE, PODS["training"]["spec"]["containers"][0])
    assert jobs["RAY_ADDRESS"].endswith(f":{ports['dashboard']}")
    assert environment(BASE, head)["RAY_AUTH_MODE"] == "token"


def test_ray_s_objects_have_room_in_memory_as_with_a_head_of_the_service_s_own() -> None:
    """Where they have none, Ray puts them on the disk."""
    from services.training.jobs.head import _OBJECTS

    cluster = one(BASE, "RayCluster", "ray")["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]["object-store-memory"] == str(_OBJECTS)
        sizes = {volume["name"]: volume.get("emptyDir") for volume in group["template"]["spec"]["volumes"]}
        assert sizes["shared-memory"] == {"medium": "Memory", "sizeLimit": "1Gi"}
        assert _OBJECTS < 2**30


def test_probes_ask_addresses_that_exist_and_want_no_key() -> None:
    from services.inference.keys import OPEN as OF_INFERENCE
    from services.training.jobs.front import OPEN as OF_TRAINING

    paths = {
        name: {
            probe["httpGet"]["path"]
            for probe in (
                PODS[name]["spec"]["containers"][0].get(f"{kind}Probe", {})
                for kind in ("startup", "readiness", "liveness")
            )
            if "httpGet" in probe
        }
        for name in PODS
    }
    assert paths.pop("inference") == {"/livez", "/readyz"} <= OF_INFERENCE
    assert paths.pop("training") == {"/livez", "/readyz"} <= OF_TRAINING
    assert paths.pop("tracking") == {"/health"}  # MLflow's own, which asks no data base
    agent = (package("ray") / "dashboard/http_server_agent.py").read_text()
    port = re.search(
        r"DEFAULT_DASHBOARD_AGENT_LISTEN_PORT = (\d+)", (package("ray") / "_private/ray_constants.py").read_text()
    )
    assert port is not None
    for name in ("ray/head", "ray/workers"):
        (path,) = paths.pop(name)
        assert f'"{path}"' in agent
        for kind in ("readiness", "liveness"):
            assert PODS[name]["spec"]["containers"][0][f"{kind}Probe"]["httpGet"]["port"] == int(port[1])
    assert not any(paths.values())


def test_what_is_run_to_ask_is_what_compose_runs() -> None:
    for name in ("postgres", "tracking"):
        probes = PODS[name]["spec"]["containers"][0]
        assert ["CMD", *probes["readinessProbe"]["exec"]["command"]] == COMPOSE[name]["healthcheck"]["test"]


def test_the_grace_of_a_pod_is_above_the_service_s_own() -> None:
    from services.training.jobs.settings import END_S

    inference = PODS["inference"]["spec"]
    (container,) = inference["containers"]
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = int(environment(BASE, container)["STRIDE_GRACE_SECONDS"])
    assert inference["terminationGracePeriodSeconds"] > before + grace + 5
    training = PODS["training"]["spec"]
    grace = int(environment(BASE, training["containers"][0])["STRIDE_JOBS_GRACE_SECONDS"])
    assert training["terminationGracePeriodSeconds"] >= grace + END_S
    for name in ("postgres", "tracking", "training", "ship"):
        assert f"{PODS[name]['spec']['terminationGracePeriodSeconds']}s" == COMPOSE[name]["stop_grace_period"]


def test_a_pod_of_inference_asks_for_a_core_for_each_worker() -> None:
    (container,) = PODS["inference"]["spec"]["containers"]
    variables = environment(BASE, container)
    assert variables["STRIDE_WORKERS"] == container["resources"]["requests"]["cpu"]
    assert variables["STRIDE_THREADS"] == "1"


def test_a_fit_takes_as_many_threads_as_it_has_cores() -> None:
    """torch counts the machine's, and would be stopped for most of each period."""
    (container,) = PODS["ship"]["spec"]["containers"]
    assert environment(BASE, container)["OMP_NUM_THREADS"] == container["resources"]["limits"]["cpu"]


def test_the_gate_s_no_is_not_asked_again() -> None:
    from contracts.errors import RecipeError

    (rule,) = one(BASE, "Job", "ship")["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [RecipeError.exit_code]
    assert rule["onExitCodes"]["containerName"] == PODS["ship"]["spec"]["containers"][0]["name"]
    assert PODS["ship"]["spec"]["restartPolicy"] == "Never", "which such a rule needs"


def test_the_server_waits_for_the_migration() -> None:
    (before,) = PODS["tracking"]["spec"]["initContainers"]
    (migration,) = PODS["migrate"]["spec"]["containers"]
    assert before["args"][:-1] == migration["args"][:-1]
    assert before["args"][-1] == "wait"
    assert environment(BASE, before) == environment(BASE, migration)
    from services.tracking.__main__ import USAGE

    assert {"wait", "migrate", "serve", "healthy"} <= set(re.findall(r"\w+", USAGE.partition("{")[2]))


def test_the_gpu_is_asked_for_where_it_is_computed_and_there_alone() -> None:
    documents = built("overlays/gpu")
    gpu = yaml.safe_load((ROOT / "infra/compose.gpu.yml").read_text())["services"]
    with_one: dict[str, Document] = {
        name: pod for name, pod in templates(documents).items() if "nvidia.com/gpu" in str(pod["spec"]["containers"])
    }
    # The training service's jobs are Ray's here.
    assert set(with_one) == {"ray/workers" if name == "training" else name for name in gpu}
    for pod in with_one.values():
        (container,) = pod["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        variables = environment(documents, container)
        assert variables["NVIDIA_DRIVER_CAPABILITIES"] == gpu["inference"]["environment"]["NVIDIA_DRIVER_CAPABILITIES"]
        assert pod["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    for name in ("inference", "ship", "training"):
        (container,) = templates(documents)[name]["spec"]["containers"]
        assert environment(documents, container)["STRIDE_DEVICE"] == "cuda"
    # A new pod has to wait for the GPU of an old one.
    assert one(documents, "Deployment", "inference")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
