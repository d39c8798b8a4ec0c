"""services.training.jobs.tracking: whether the tracking server is of use."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.training.jobs.tracking import tracking_problem


class _Mlflow(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        known = self.path == "/api/2.0/mlflow/experiments/search"
        self.send_response(200 if known and self.headers["Host"].startswith("127.0.0.1") else 403)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:  # pytest's output is not its log
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Mlflow) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def problem(uri: str) -> str | None:
    return asyncio.run(tracking_problem(uri))


def test_a_server_that_answers_is_fine_and_one_that_refuses_us_is_not(server: str) -> None:
    assert problem(server) is None
    assert problem(server.replace("127.0.0.1", "localhost")) == (
        f"tracking at {server.replace('127.0.0.1', 'localhost')}: HTTP 403"
    )


def test_a_server_that_is_away_is_told_without_its_password(free_port: int) -> None:
    found = problem(f"http://user:secret@127.0.0.1:{free_port}")
    assert found is not None
    assert found.startswith(f"tracking at http://user:***@127.0.0.1:{free_port}: no answer")


def test_an_embedded_data_base_is_fine_before_its_first_use_and_after(embedded_tracking: str, tmp_path: Path) -> None:
    assert problem(embedded_tracking) is None
    assert problem(f"sqlite:///{tmp_path / 'none.db'}") is None
    (tmp_path / "broken.db").write_bytes(b"no data base" * 100)
    assert "cannot be opened (file is not a database)" in (problem(f"sqlite:///{tmp_path / 'broken.db'}") or "")
