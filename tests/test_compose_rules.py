"""The compose files, held to the rules of the house without an engine: pinned, hardened, bounded, on loopback alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


class _Loader(yaml.SafeLoader):
    """Reads what compose resets as empty."""


_Loader.add_constructor("!reset", lambda _loader, _node: [])


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    return content


STACK = read("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
EDGE = read("infra/compose.edge.yml")["services"]["edge"]
ALL = {**SERVICES, "edge": EDGE}
ONE_SHOTS = {"secrets", "migrate", "ship"}


@pytest.mark.parametrize("name", ALL)
def test_a_service_is_hardened_and_bounded(name: str) -> None:
    service = ALL[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "tmpfs"} <= set(service)
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert "container_name" not in service


@pytest.mark.parametrize("name", sorted(set(ALL) - ONE_SHOTS))
def test_what_keeps_running_is_restarted_and_says_how_it_is(name: str) -> None:
    service = ALL[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"


def test_a_one_shot_is_waited_for_by_somebody() -> None:
    """Else `up --wait` would take its end for a failure."""
    waited = {
        on
        for service in SERVICES.values()
        for on, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    assert waited == ONE_SHOTS
    assert {name for name, service in SERVICES.items() if service["restart"] == "no"} == ONE_SHOTS


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_pinned_and_a_port_is_on_loopback(name: str) -> None:
    service = ALL[name]
    assert re.fullmatch(r"[a-z0-9/-]+:(v?\d[\d.]*|\$\{STRIDE_TAG:-local\})", service["image"])
    for port in service.get("ports", []):
        assert port.startswith(("127.0.0.1:", "${STRIDE_EDGE_ADDRESS:-127.0.0.1}:"))


def test_postgres_is_on_an_internal_network_alone_and_publishes_nothing() -> None:
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert "ports" not in SERVICES["postgres"]
    assert STACK["networks"]["database"] == {"internal": True}
    assert {name for name, each in SERVICES.items() if "database" in each.get("networks", [])} == {
        *("postgres", "migrate", "tracking")
    }


def test_the_grace_of_a_stop_is_above_the_service_s_own() -> None:
    def seconds(name: str) -> int:
        return int(SERVICES[name]["stop_grace_period"].removesuffix("s"))

    assert seconds("inference") > SERVICES["inference"]["environment"]["STRIDE_GRACE_SECONDS"] + 5
    from services.training.jobs.settings import END_S

    assert seconds("training") >= SERVICES["training"]["environment"]["STRIDE_JOBS_GRACE_SECONDS"] + END_S


def test_only_edge_publishes_a_port_behind_it() -> None:
    published = {name for name, service in SERVICES.items() if "ports" in service and "profiles" not in service}
    reset = {name for name, service in read("infra/compose.edge.yml")["services"].items() if service.get("ports") == []}
    assert reset == published


def test_the_gpu_is_reserved_for_what_computes_and_the_cpu_is_refused() -> None:
    for name, service in read("infra/compose.gpu.yml")["services"].items():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert service["environment"]["STRIDE_REQUIRE_GPU"] == "1", name
    assert set(read("infra/compose.gpu.yml")["services"]) == {"training", "ship", "inference"}


def test_every_variable_stands_in_the_example_and_the_other_way_round() -> None:
    given = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    files = ("docker-compose.yml", "infra/compose.gpu.yml", "infra/compose.edge.yml", "infra/up.sh")
    text = "".join((ROOT / file).read_text() for file in files)
    used = set(re.findall(r"\$\{(STRIDE_[A-Z_]+)", text)) | set(re.findall(r"setting (STRIDE_[A-Z_]+)", text))
    assert given == used


def test_the_example_s_defaults_are_those_of_the_files() -> None:
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    files = ("docker-compose.yml", "infra/compose.gpu.yml", "infra/compose.edge.yml")
    for file in files:
        for name, default in re.findall(r"\$\{(STRIDE_[A-Z_]+):-([^}]*)\}", (ROOT / file).read_text()):
            if default not in ("images", "edge-secret") or given[name]:  # volumes that stand in for a directory
                assert given[name] == default, name


def test_what_is_ignored_by_docker_leaves_the_sources() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "infra/images/Dockerfile").read_text(), re.MULTILINE))
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_the_split_of_the_locks_loses_and_repeats_nothing(tmp_path: Path) -> None:
    import subprocess

    for service in ("training", "inference", "tracking"):
        lock = (ROOT / f"services/{service}/requirements.txt").read_text()
        (tmp_path / f"{service}.lock").write_text(lock)
    subprocess.run(["sh", ROOT / "infra/images/split-locks.sh"], cwd=tmp_path, check=True)

    def pins(*files: str) -> list[str]:
        entries = [re.findall(r"^(\S+?==\S+)", (tmp_path / file).read_text(), re.MULTILINE) for file in files]
        return sorted(pin for found in entries for pin in found)

    assert pins("cuda.txt", "torch.txt", "training.txt") == pins("training.lock")
    assert pins("cuda.txt", "inference.txt") == pins("inference.lock")
    assert pins("tracking.txt") == pins("tracking.lock")
    assert not [pin for pin in pins("cuda.txt", "inference.txt") if pin.startswith(("torch", "triton"))]
    hashes = [(tmp_path / file).read_text().count("--hash") for file in ("cuda.txt", "torch.txt", "training.txt")]
    assert sum(hashes) == (tmp_path / "training.lock").read_text().count("--hash")


def test_processes_are_bounded_but_not_by_the_number_of_a_large_machine_s_cores() -> None:
    """Some libraries make a thread a core; what only serves and keeps accounts needs none of numpy's."""
    dockerfile = (ROOT / "infra/images/Dockerfile").read_text()
    for target in ("tracking", "inference"):
        stage = dockerfile.partition(f"FROM service AS {target}\n")[2].partition("\nFROM ")[0]
        assert re.search(r"^ENV .*OPENBLAS_NUM_THREADS=1$", stage, re.MULTILINE), target
    for name in ("tracking", "training", "ship", "inference"):
        assert SERVICES[name]["pids_limit"] == 4096, name


@pytest.mark.parametrize("name", ["inference", "training"])
def test_a_key_for_the_metrics_alone_is_given_where_keys_are_asked_for(name: str) -> None:
    service = SERVICES[name]
    (mount,) = (each for each in service["volumes"] if isinstance(each, dict) and each["source"] == "metrics-secret")
    given = service["environment"]["STRIDE_METRICS_KEYS_FILE"]
    assert given in (f"{mount['target']}/keys", f"${{STRIDE_API_KEYS:+{mount['target']}/keys}}")
    assert mount["read_only"] is True


def test_no_single_file_of_the_user_s_is_mounted() -> None:
    """The engine mounts the file that it finds, so that one put in its place later would never be seen."""
    settings = {mount for each in ALL.values() for mount in each.get("volumes", []) if str(mount).startswith("${")}
    assert {str(mount).partition(":-")[0] for mount in settings} == {
        "${STRIDE_IMAGES",
        "${STRIDE_API_KEYS",
        "${STRIDE_TLS",
    }
    assert SERVICES["inference"]["environment"]["STRIDE_API_KEYS_FILE"] == "${STRIDE_API_KEYS:+/run/api-keys/keys}"
