"""Local servers: started once, reused, replaced, and ended with every process that they started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from contracts import places
from pipelines import owned_processes, processes
from pipelines.processes import Server, ServerError

# Answers 200 on every path; with `worker`, a child that ignores SIGTERM, in a session of its own, as supervisors have.
SERVE = """
import http.server, subprocess, sys
if "worker" in sys.argv:
    code = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(port: int, *arguments: str, name: str = "trial", code: str = SERVE, deadline_s: float = 30) -> Server:
    command = (sys.executable, "-c", code, str(port), *arguments)
    return Server(name=name, command=command, port=port, health="/health", deadline_s=deadline_s)


def test_a_server_is_started_reused_and_stopped(free_port: int) -> None:
    first = processes.start(server(free_port))
    assert not first.reused
    again = processes.start(server(free_port))
    assert again.reused
    assert again.pid == first.pid
    assert processes.stop("trial")
    assert not psutil.pid_exists(first.pid)
    assert processes.find("trial") is None
    assert not processes.stop("trial")


def test_another_command_replaces_the_running_server(free_port: int) -> None:
    first = processes.start(server(free_port))
    second = processes.start(server(free_port, "changed"))
    try:
        assert second.pid != first.pid
        assert not psutil.pid_exists(first.pid)
    finally:
        processes.stop("trial")


def test_changed_environment_makes_a_running_server_out_of_date(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = server(free_port).identity()
    monkeypatch.setenv("STRIDE_MODEL", "another")
    assert server(free_port).identity() != before


def lives(process: psutil.Process) -> bool:
    """Who is dead and has not been collected yet, by whoever its parent is now, does not."""
    return owned_processes.alive(process.pid, process.create_time())


def test_stopping_ends_workers_that_left_the_session_and_ignore_sigterm(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.5)
    record = processes.start(server(free_port, "worker"))
    family = processes.members(record)
    assert len(family) == 2
    processes.stop("trial")
    assert not any(lives(process) for process in family)


def test_workers_that_outlived_their_leader_are_ended_too(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.5)
    record = processes.start(server(free_port, "worker"))
    psutil.Process(record.pid).kill()
    psutil.Process(record.pid).wait()
    orphans = processes.members(record)
    assert len(orphans) == 1
    assert processes.stop("trial")
    assert not lives(orphans[0])


def test_a_recycled_process_id_is_not_signalled(free_port: int) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        path = places.home() / "run" / "trial.json"
        path.parent.mkdir(parents=True)
        record = {
            "name": "trial",
            "pid": bystander.pid,
            "started": psutil.Process(bystander.pid).create_time() - 100,
            "token": "0" * 32,
            "identity": "",
            "url": f"http://127.0.0.1:{free_port}",
            "health": "/",
            "log": "",
        }
        path.write_text(json.dumps(record))
        assert not processes.stop("trial")
        assert bystander.poll() is None
        bystander.kill()


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} on 127\.0\.0\.1.*\({os.getpid()}|--port or STRIDE_PORT"):
            processes.start(server(port))


def test_a_server_that_ends_at_once_shows_the_tail_of_its_log(free_port: int) -> None:
    with pytest.raises(ServerError, match=r"(?s)trial ended before it was healthy.*it broke here"):
        processes.start(server(free_port, code="raise SystemExit('it broke here')"))
    assert processes.find("trial") is None


def test_a_server_that_never_answers_is_stopped_at_its_deadline(free_port: int) -> None:
    silent = server(free_port, code="import time; time.sleep(600)", deadline_s=0.5)
    with pytest.raises(ServerError, match=r"/health did not answer 200 within 0 s|within 1 s"):
        processes.start(silent)
    assert processes.find("trial") is None


def test_a_record_of_another_version_is_dropped() -> None:
    path = places.home() / "run" / "trial.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"pid": 1}')
    assert processes.find("trial") is None
    assert not path.exists()


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("one\ntwo\nthree\n")
    assert processes.tail(log, lines=2) == "  two\n  three"
    assert processes.tail(tmp_path / "none.log") == "  (no log)"
