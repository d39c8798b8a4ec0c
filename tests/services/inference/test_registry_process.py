"""services.inference.registry_process: the same answers from a process of its own, which may die at any time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from contracts.errors import RegistryError
from contracts.registry import Quarantine
from services.inference.registry import Registry
from services.inference.registry_process import RegistryProcess

ROOT = Path(__file__).parents[3]


@pytest.fixture
def asked(mlflow_server: Any) -> Iterator[RegistryProcess]:
    process = RegistryProcess(mlflow_server.url)
    yield process
    process.end()


def child_of(process: RegistryProcess) -> psutil.Process:
    assert process._process is not None
    return psutil.Process(process._process.pid)


def test_it_answers_as_the_registry_itself(
    asked: RegistryProcess, mlflow_server: Any, tiny: Any, tmp_path: Path, model_name: str
) -> None:
    known = tiny(1).bundle(tmp_path / "bundle", name=model_name)
    version = mlflow_server.publish(known, name=model_name)
    mlflow_server.promote(model_name, version)
    itself = Registry(mlflow_server.url)
    (found,) = asked.look((model_name,), {})
    assert [found] == itself.look((model_name,), {})
    assert found.wanted is not None
    assert (asked.download(found.wanted, tmp_path) / "bundle.json").read_bytes() == (
        known.path / "bundle.json"
    ).read_bytes()
    asked.mark(found.wanted, Quarantine("a reason", "2026-01-01"))
    (marked,) = itself.look((model_name,), {})
    assert marked.wanted is not None
    assert marked.wanted.quarantine == Quarantine("a reason", "2026-01-01")


def test_a_process_that_was_killed_is_told_of_and_the_next_question_has_another(asked: RegistryProcess) -> None:
    asked.look(("nobody",), {})
    first = child_of(asked)
    first.kill()
    with pytest.raises(RegistryError, match=r"the process that asks the registry at http://127.* has ended \(-9\)"):
        asked.look(("nobody",), {})
    (found,) = asked.look(("nobody",), {})
    assert found.missing is not None
    assert child_of(asked).pid != first.pid


def test_an_end_stops_a_question_that_hangs_and_every_later_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as elsewhere:
        asked = RegistryProcess(f"http://127.0.0.1:{silent.getsockname()[1]}")
        hanging = elsewhere.submit(asked.look, ("nobody",), {})
        connection, _ = silent.accept()  # it has asked, and will hear nothing
        child = child_of(asked)
        asked.end()
        with pytest.raises(RegistryError, match="has ended"):
            hanging.result(timeout=10)
        connection.close()
    assert not child.is_running()
    with pytest.raises(RegistryError, match="the service ends"):
        asked.look(("nobody",), {})


def test_no_password_stands_where_everybody_may_read_it() -> None:
    asked = RegistryProcess("http://anna:hidden@127.0.0.1:9")
    with pytest.raises(RegistryError, match="does not answer"):
        asked.look(("nobody",), {})
    assert "hidden" not in " ".join(child_of(asked).cmdline())
    asked.end()


def test_it_leaves_what_the_service_is_told_to_the_service_and_serving_goes_first(asked: RegistryProcess) -> None:
    asked.look(("nobody",), {})
    child = child_of(asked)
    for told in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(told)
    asked.look(("nobody",), {})
    assert child_of(asked).pid == child.pid
    assert child.nice() > os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize("hangs", [False, True], ids=["idle", "amid a question"])
def test_it_does_not_outlive_a_worker_that_is_killed(hangs: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = (
            "import sys, threading, time\nfrom services.inference.registry_process import RegistryProcess\n"
            f"asked = RegistryProcess('http://127.0.0.1:{silent.getsockname()[1]}')\n"
            f"what = (lambda: asked.look(('nobody',), {{}})) if {hangs} else asked._running\n"
            "threading.Thread(target=what).start()\n"
            "while asked._process is None: time.sleep(0.01)\n"
            "print(asked._process.pid, flush=True)\ntime.sleep(60)\n"
        )
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        talking = silent.accept()[0] if hangs else None
        worker.kill()
        worker.communicate()
        until = time.monotonic() + 30
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.05)
        if talking is not None:
            talking.close()
