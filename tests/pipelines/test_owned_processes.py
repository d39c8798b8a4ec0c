"""Processes that carry a token: found with their children, ended without a rest, never mistaken for others."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from pipelines import owned_processes

# Starts a child in a session of its own, says its id, and waits with it.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def token() -> str:
    return secrets.token_hex(16)


@pytest.fixture
def family(token: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with the token, and the id of its child."""
    environment = {**os.environ, owned_processes.TOKEN: token}
    command = (sys.executable, "-c", PARENT)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        yield parent, int(parent.stdout.readline())
        owned_processes.end(token, grace_s=5)


def test_children_are_members_and_all_of_them_are_ended(family: tuple[subprocess.Popen[str], int], token: str) -> None:
    parent, child = family
    assert {process.pid for process in owned_processes.members(token)} == {parent.pid, child}
    assert owned_processes.end(token, grace_s=5)
    assert owned_processes.members(token) == []
    assert not owned_processes.end(token, grace_s=5)


def test_another_token_ends_nothing(family: tuple[subprocess.Popen[str], int]) -> None:
    assert not owned_processes.end(secrets.token_hex(16), grace_s=5)
    assert family[0].poll() is None


def test_a_process_is_known_by_its_id_and_by_when_it_was_created() -> None:
    created = psutil.Process().create_time()
    assert owned_processes.alive(os.getpid(), created)
    assert not owned_processes.alive(os.getpid(), created - 100)


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        started = psutil.Process(process.pid).create_time()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not owned_processes.alive(process.pid, started)


@pytest.mark.timeout(30)
def test_who_is_dead_and_not_collected_by_its_parent_is_not_waited_for(token: str) -> None:
    # As `stop` beside `serve`: the parent collects its children once it has the lock that `stop` holds.
    child = f"import os, subprocess, sys; environment = {{**os.environ, {owned_processes.TOKEN!r}: {token!r}}}; " + (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env=environment); "
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    command = (sys.executable, "-c", child)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) in [process.pid for process in owned_processes.members(token)]
        assert owned_processes.end(token, grace_s=5)
        assert owned_processes.members(token) == []
        assert parent.poll() is None
