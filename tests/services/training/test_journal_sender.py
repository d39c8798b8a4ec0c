"""A run whose tracking server is paused, killed, restarted or silent: a real MLflow server, and real sockets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import RegistryError
from contracts.recipe import Recipe
from services.tracking.server import embedded
from services.training import journal, journal_sync, tracking
from services.training.run import Run
from tests.services.training.hurt_server import RealServer, Relay

EPOCHS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[tuple[RealServer, Path]]:
    """A server that runs, and its home."""
    directory = tmp_path_factory.mktemp("server")
    (directory / "home").mkdir()
    shutil.copy(migrated_database, directory / "home" / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    running = RealServer(embedded(home=directory / "home", port=port), directory)
    running.start()
    try:
        yield running, directory / "home"
    finally:
        running.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own client gives up soon; Stride's thread is what tries again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("STRIDE_TRACKING_WAIT", "60")


@pytest.fixture
def relay(place: tuple[RealServer, Path]) -> Iterator[Relay]:
    made = Relay(place[0].server.port)
    yield made
    made.close()


def fit(run: Run, at: dict[int, Callable[[], None]]) -> float:
    """Log epochs of 20 ms and a file; calls `at[epoch]` after that epoch. The longest time that logging has taken."""
    longest = 0.0
    for epoch in range(1, EPOCHS + 1):
        started = time.perf_counter()
        run.epoch(epoch, {"train/loss": 1 / epoch, "validation/loss": 2 / epoch, "lr": 0.1})
        if epoch % 10 == 0:
            run.file(f"files/{epoch}.bin", os.urandom(1000))
            run.image("grad-cam", epoch, np.full((8, 8, 3), epoch, np.uint8))
        longest = max(longest, time.perf_counter() - started)
        if epoch in at:
            at[epoch]()
        time.sleep(0.02)
    run.metrics({"test/accuracy": 0.9})
    return longest


def assert_complete(home: Path, run_id: str) -> None:
    """Every metric is in the data base once, with every file, and the run is closed."""
    with sqlite3.connect(home / "mlflow.db") as database:
        query = "select key, step, value from metrics where run_uuid = ? and key not like 'system/%' order by 1, 2"
        rows = database.execute(query, (run_id,)).fetchall()
        twice = "select key, step from metrics where run_uuid = ? group by key, step having count(*) > 1"
        assert database.execute(twice, (run_id,)).fetchall() == []
        (status,) = database.execute("select status from runs where run_uuid = ?", (run_id,)).fetchone()
    expected = {("test/accuracy", 0): 0.9}
    for epoch in range(1, EPOCHS + 1):
        expected |= {("train/loss", epoch): 1 / epoch, ("validation/loss", epoch): 2 / epoch, ("lr", epoch): 0.1}
    assert {(key, step): value for key, step, value in rows} == expected
    assert status == "FINISHED"
    (artifacts,) = (home / "artifacts").rglob(f"{run_id}/artifacts")
    assert sorted(path.name for path in (artifacts / "files").iterdir()) == [f"{n}.bin" for n in (10, 20, 30, 40)]
    assert len(list((artifacts / "images").glob("*.png"))) == 4


def test_a_server_that_is_paused_during_a_fit_costs_no_metric_and_no_time(
    place: tuple[RealServer, Path], tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, home = place
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.server.url)
    at = {8: lambda: server.send(signal.SIGSTOP)}
    threading.Timer(8, server.send, (signal.SIGCONT,)).start()  # after several requests have been given up
    with tracking.open_run(tiny_recipe, tags={}) as run:
        longest = fit(run, at)
    assert run.tracked
    assert longest < 0.2
    assert_complete(home, run.run_id)
    assert journal.directories() == []


def test_a_server_that_is_killed_and_comes_back_during_a_fit_costs_no_metric(
    place: tuple[RealServer, Path],
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, home = place
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.server.url)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        longest = fit(run, {8: server.kill, 30: server.start})
    assert run.tracked
    assert longest < 0.2
    assert_complete(home, run.run_id)
    assert "the fit goes on, and all is kept in" in caplog.text


def test_a_server_that_hangs_is_not_waited_for_beyond_the_stated_time_and_gets_all_later(
    place: tuple[RealServer, Path],
    relay: Relay,
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{relay.port}")
    monkeypatch.setenv("STRIDE_TRACKING_WAIT", "1")
    with tracking.open_run(tiny_recipe, tags={}) as run:
        longest = fit(run, {8: relay.silent.set})
        ended = time.monotonic()
    assert time.monotonic() - ended < 5  # the second that was stated, and one for the thread
    assert not run.tracked
    assert longest < 0.2
    assert "they are kept in" in caplog.text
    assert "`stride sync` sends them and closes the run as FINISHED" in caplog.text
    (kept,) = journal_sync.kept()
    assert (kept.run_id, kept.status, kept.waits) == (run.run_id, "FINISHED", True)

    started = time.monotonic()
    (still,) = journal_sync.sync()
    assert time.monotonic() - started < 15
    assert still.state == "kept"
    assert still.problem is not None
    assert "no answer" in still.problem

    relay.silent.clear()
    (sent,) = journal_sync.sync()
    assert (sent.state, sent.left) == ("sent", 0)
    assert_complete(place[1], run.run_id)
    assert journal_sync.sync() == []


def test_a_fit_that_outlives_its_server_is_sent_by_two_syncs_at_once_and_is_there_once(
    place: tuple[RealServer, Path], tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, home = place
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.server.url)
    monkeypatch.setenv("STRIDE_TRACKING_WAIT", "0.5")
    with tracking.open_run(tiny_recipe, tags={"stride.data_fingerprint": "d"}) as run:
        fit(run, {8: server.kill})
    assert not run.tracked
    server.start()
    together = threading.Barrier(2)
    results: list[str] = []

    def sync() -> None:
        together.wait()
        results.extend(result.state for result in journal_sync.sync())

    threads = [threading.Thread(target=sync) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "sent" in results
    assert set(results) <= {"sent", "in use"}
    assert_complete(home, run.run_id)
    assert journal.directories() == []


def test_a_run_cannot_be_opened_without_its_server_and_says_so_within_seconds(
    place: tuple[RealServer, Path], relay: Relay, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{relay.port}")
    relay.silent.set()
    started = time.monotonic()
    with (
        pytest.raises(RegistryError, match=r"no answer.*start it"),
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass
    assert time.monotonic() - started < 15
    assert journal.directories() == []


def test_a_run_that_was_killed_while_its_server_was_away_goes_on_with_it(
    place: tuple[RealServer, Path],
    relay: Relay,
    home: Path,
    tiny_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the journal, not sent, killed with a line half written: the resumed run has each epoch once."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from contracts.recipe import parse\n"
        "from services.training.tracking import open_run\n"
        "with open_run(parse(json.loads(sys.argv[1]), name='tiny'), tags={}) as run:\n"
        "    print(run.run_id, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    for epoch in range(1, 20):\n"
        "        run.epoch(epoch, {'train/loss': 1 / epoch, 'validation/loss': 2 / epoch, 'lr': 0.1})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{relay.port}")
    process = subprocess.Popen(
        [sys.executable, str(script), tiny_recipe.model_dump_json(exclude={"name"}, exclude_none=True)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    relay.silent.set()
    process.communicate("go\n", timeout=60)
    assert process.returncode == -9
    assert _epochs_sent(place[1], run_id) == 0
    lines = home / "journal" / run_id / "journal.jsonl"
    os.truncate(lines, lines.stat().st_size - 10)
    relay.silent.clear()
    with tracking.open_run(tiny_recipe, tags={}, resume=run_id) as again:
        fit(again, {})
    assert "is dropped" in caplog.text
    assert_complete(place[1], run_id)


def _epochs_sent(home: Path, run_id: str) -> int:
    with sqlite3.connect(home / "mlflow.db") as database:
        query = "select count(*) from metrics where run_uuid = ? and key = 'train/loss'"
        count: int = database.execute(query, (run_id,)).fetchone()[0]
    return count
