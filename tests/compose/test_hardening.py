"""What a container may do: as the engine was told, as the kernel says, and what it can read of the secrets."""

from __future__ import annotations

import json
import re

import pytest

from tests.compose.running import LONG_RUNNING, ONE_SHOTS
from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_every_container_is_hardened(stack: Stack) -> None:
    containers = stack.containers()
    assert set(containers) == LONG_RUNNING | ONE_SHOTS
    for name, each in containers.items():
        host = each["HostConfig"]
        assert each["Config"]["User"] not in ("", "root", "0", "0:0"), name
        assert host["CapDrop"] == ["ALL"], name
        assert not host["CapAdd"], name
        assert host["ReadonlyRootfs"], name
        assert not host["Privileged"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert 0 < host["Memory"] <= 16 * 2**30, name
        assert 0 < host["PidsLimit"] <= 4096, name
        assert host["LogConfig"]["Type"] == "json-file", name
        assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}, name


@pytest.mark.parametrize("service", sorted(LONG_RUNNING))
def test_a_service_has_no_rights_in_fact(stack: Stack, service: str) -> None:
    """What the kernel says, beside what the engine was told."""
    fields = dict(re.findall(r"^(\w+):\s*(\S+)", stack.read(service, "/proc/1/status"), re.MULTILINE))
    assert fields["Uid"] != "0"
    assert int(fields["CapEff"], 16) == 0
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert stack.compose("exec", "-T", service, "touch", "/written", check=False).returncode != 0


def test_no_secret_stands_in_a_container_s_description_or_environment(stack: Stack) -> None:
    secrets = {
        "postgres": stack.read("tracking", "/run/secrets/password").strip(),
        "jobs": stack.read("training", "/run/secrets/keys").strip(),
        "metrics": stack.read("inference", "/run/metrics/keys").strip(),
    }
    assert all(len(secret) >= 32 for secret in secrets.values())
    for service, described in stack.containers().items():
        assert not [name for name, secret in secrets.items() if secret in json.dumps(described)], service
    for service in LONG_RUNNING:
        # All processes of the service's own user, the secret spelled out or not.
        code = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"
        seen = stack.compose("exec", "-T", service, "sh", "-c", code).stdout
        assert "PATH=" in seen
        # Postgres' own entrypoint exports it, in its container alone.
        wanted = [secret for name, secret in secrets.items() if (service, name) != ("postgres", "postgres")]
        assert not [secret for secret in wanted if secret in seen], service


def test_a_service_sees_the_secrets_that_it_needs_and_no_others(stack: Stack) -> None:
    mounted = {
        name: {mount["Name"].partition("_")[2] for mount in each["Mounts"] if mount.get("Name", "").endswith("-secret")}
        for name, each in stack.containers().items()
    }
    assert {name: secrets for name, secrets in mounted.items() if secrets and name != "secrets"} == {
        "postgres": {"postgres-secret"},
        "migrate": {"postgres-secret"},
        "tracking": {"postgres-secret"},
        "training": {"jobs-secret", "metrics-secret"},
        "inference": {"metrics-secret"},
    }
