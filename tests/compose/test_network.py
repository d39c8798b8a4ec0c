"""Who reaches what: the host's ports, the networks, and the names that MLflow answers to."""

from __future__ import annotations

import json
import socket

import pytest

from tests.compose.stack import Stack, docker, listening

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_only_the_stack_s_own_ports_are_open_and_only_on_loopback(
    stack: Stack, listening_before: set[tuple[str, int]]
) -> None:
    published = {stack.ports[name] for name in ("STRIDE_PORT", "STRIDE_MLFLOW_PORT", "STRIDE_JOBS_PORT")}
    assert stack.published() == {("127.0.0.1", port) for port in published}
    loopback = "0100007F"  # 127.0.0.1 as /proc/net/tcp writes it
    new = {(address, port) for address, port in listening() - listening_before if port in published or port == 5432}
    assert {port for _, port in new} <= published
    assert {address for address, _ in new} <= {loopback}
    for port in published:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_postgres_is_out_of_reach_for_all_but_mlflow(stack: Stack) -> None:
    code = "import socket; socket.create_connection(('postgres', 5432), timeout=3)"
    assert stack.compose("exec", "-T", "tracking", "python", "-c", code, check=False).returncode == 0
    for service in ("inference", "training"):
        assert stack.compose("exec", "-T", service, "python", "-c", code, check=False).returncode != 0, service
    for name in ("database", "stack"):
        assert json.loads(docker("network", "inspect", f"{stack.project}_{name}").stdout)[0]["Internal"] is True


def test_what_serves_has_no_way_out(stack: Stack) -> None:
    """An address outside, not a name: who resolves names has a way out of its own."""
    code = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=3)"
    for service in ("inference", "tracking"):
        done = stack.compose("exec", "-T", service, "python", "-c", code, check=False)
        assert done.returncode != 0, service
    assert set(stack.containers()["postgres"]["NetworkSettings"]["Networks"]) == {f"{stack.project}_database"}


def test_mlflow_refuses_a_host_that_it_was_not_told_of(stack: Stack) -> None:
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert "experiments" in stack.get("tracking", path)
    with pytest.raises(AssertionError, match="403"):
        stack.ask("tracking", path, headers={"Host": "rebound.example"})
