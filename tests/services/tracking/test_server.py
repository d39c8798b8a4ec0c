"""Real MLflow servers, embedded and proxied, and the clients that share them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from contracts.errors import RegistryError
from contracts.recipe import Recipe, parse
from services.tracking.server import Server, embedded, migrate, problem_of, wait_until_ready
from services.training import journal_sync, tracking
from services.training.mlflow_client import connect


@pytest.fixture
def recipe() -> Recipe:
    content = {
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 4}] * 10},
    }
    return parse(content, name="tiny")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _running(server: Server, directory: Path) -> Iterator[None]:
    """The server as a process; that its end leaves none behind is asserted here, for every server of this file."""
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            server.command(), env=server.environment(os.environ), cwd=directory, stdout=log, stderr=log
        )
        try:
            wait_until_ready(server.url, alive=lambda: process.poll() is None)
            yield
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(30)
            _, alive = psutil.wait_procs(children, timeout=20)
    assert children
    assert not alive
    assert problem_of(server.url) is not None


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """An embedded server and its home."""
    directory = tmp_path_factory.mktemp("embedded")
    server = embedded(home=directory / "home", port=_free_port())
    migrate(server, environment=os.environ)
    with _running(server, directory):
        yield server, directory / "home"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[tuple[Server, Path]]:
    """A server that keeps the artifacts, as in compose, and where it keeps them."""
    directory = tmp_path_factory.mktemp("proxied")
    shutil.copy(migrated_database, directory / "server.db")
    server = Server(
        backend=f"sqlite:///{directory / 'server.db'}",
        proxied=str(directory / "kept"),
        port=_free_port(),
        names=("mlflow:5000",),
        json_log=True,
    )
    with _running(server, directory):
        yield server, directory / "kept"


def _get(server: Server, path: str, *, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _download(uri: str, run_id: str, path: str) -> str:
    """The text of a file of the bundle."""
    import mlflow

    at = mlflow.artifacts.download_artifacts(artifact_uri=f"runs:/{run_id}/bundle", tracking_uri=uri)
    return (Path(at) / path).read_text()


def _download_elsewhere(uri: str, run_id: str, path: str) -> str:
    """The same by a process that knows the tracking URI only."""
    code = (
        "import sys, pathlib, mlflow\n"
        "at = mlflow.artifacts.download_artifacts(artifact_uri=f'runs:/{sys.argv[1]}/bundle')\n"
        "print(pathlib.Path(at, sys.argv[2]).read_text())"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-c", code, run_id, path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_run_of_the_data_base_is_read_over_http_with_its_artifacts(
    local: tuple[Server, Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, home = local
    monkeypatch.setenv("STRIDE_HOME", str(home))
    with tracking.open_run(recipe, tags={}) as run:
        run.epoch(1, {"train/loss": 0.5})
        run.file("bundle/bundle.json", "{}")
    client = connect(server.url)
    assert client.get_run(run.run_id).data.metrics["train/loss"] == 0.5
    assert client.get_run(run.run_id).info.artifact_uri == str(home / "artifacts" / "tiny" / run.run_id / "artifacts")
    assert [item.path for item in client.list_artifacts(run.run_id, "bundle")] == ["bundle/bundle.json"]
    assert _download_elsewhere(server.url, run.run_id, "bundle.json") == "{}"
    query = urllib.parse.urlencode({"path": "bundle/bundle.json", "run_uuid": run.run_id})
    assert _get(server, f"/get-artifact?{query}") == (200, b"{}")  # as the page asks for it


def test_a_run_made_over_http_is_read_from_the_data_base_with_its_artifacts(
    local: tuple[Server, Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, home = local
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    other = recipe.model_copy(update={"model_name": "over-http"})
    with tracking.open_run(other, tags={}) as run:
        run.file("bundle/bundle.json", "{1}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("STRIDE_HOME", str(home))
    assert tracking.get_run(run.run_id).info.status == "FINISHED"
    assert _download(tracking.tracking_uri(), run.run_id, "bundle.json") == "{1}"
    assert [path.read_text() for path in (home / "artifacts").rglob(f"{run.run_id}/artifacts/bundle/*")] == ["{1}"]


def test_through_the_proxy_everything_of_a_run_arrives(
    proxied: tuple[Server, Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, kept = proxied
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    with tracking.open_run(recipe, tags={"stride.data_fingerprint": "f", "stride.code_version": "1"}) as run:
        run.epoch(1, {"train/loss": 0.5, "validation/loss": float("nan")})
        run.file("bundle/bundle.json", "{2}")
        run.table("tables/t.json", {"a": [1]})
        run.note("# card")
    found = tracking.get_run(run.run_id)
    assert found.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert found.data.params["description"] == '""'
    assert found.data.params["model.blocks.9.filters"] == "4"
    assert found.data.metrics["train/loss"] == 0.5
    assert "system/cpu_utilization_percentage" in found.data.metrics
    assert len(list(kept.rglob("bundle.json"))) == 1
    assert _download(server.url, run.run_id, "bundle.json") == "{2}"
    assert tracking.find_finished(recipe, data_fingerprint="f", code_version="1") == run.run_id


def test_the_first_runs_of_an_experiment_may_start_at_once_over_http(
    proxied: tuple[Server, Path], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxied[0].url)
    other = recipe.model_copy(update={"model_name": "at-once"})
    start = threading.Barrier(4)
    experiments: list[str] = []

    def open_one() -> None:
        start.wait()
        with tracking.open_run(other, tags={}) as run:
            experiments.append(run.experiment_id)

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(experiments) == 4
    assert len(set(experiments)) == 1


def test_a_server_that_goes_away_ends_no_run_and_gets_through_its_proxy_what_was_kept(
    proxied: tuple[Server, Path],
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, kept = proxied
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("STRIDE_TRACKING_WAIT", "1")
    with _relay(server.port) as (port, cut):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        with tracking.open_run(recipe, tags={}) as run:
            cut()
            run.epoch(1, {"train/loss": 0.5})
            run.file("weights/kept.bin", b"weights")
        assert time.monotonic() - begun < 20
    assert not run.tracked
    assert "`stride sync` sends them and closes the run as FINISHED" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    assert [result.state for result in journal_sync.sync()] == ["sent"]
    found = tracking.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train/loss"] == 0.5
    assert [path.read_bytes() for path in kept.rglob("kept.bin")] == [b"weights"]


@contextmanager
def _relay(to: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A port that passes every byte on to another one, until it is cut."""
    listener = socket.create_server(("127.0.0.1", 0))
    ends: list[socket.socket] = [listener]

    def accept() -> None:
        with suppress(OSError):  # cut
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", to))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()

    def cut() -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1], cut
    cut()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # cut
        while data := source.recv(65536):
            target.sendall(data)


def test_only_the_names_that_were_given_are_answered(proxied: tuple[Server, Path]) -> None:
    server, _ = proxied
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert _get(server, path)[0] == 200
    assert _get(server, path, host="mlflow:5000")[0] == 200
    assert _get(server, path, host="evil.example")[0] == 403


def test_the_log_is_one_line_of_json_an_event(proxied: tuple[Server, Path]) -> None:
    server, kept = proxied
    _get(server, "/api/2.0/mlflow/experiments/get?experiment_id=0", host="evil.example")
    lines = (kept.parent / "server.log").read_text().splitlines()
    # Its command prints two lines before anything is asked.
    greetings = [line for line in lines if line.startswith(("[MLflow] ", "Registry store URI not provided"))]
    events = [json.loads(line) for line in lines if line not in greetings]
    assert len(greetings) <= 2
    assert {"time", "level", "event"} <= set.intersection(*map(set, events))
    assert ("/api/2.0/mlflow/experiments/get?experiment_id=0", 403) in [
        (event["path"], event["status"]) for event in events if event["event"] == "request"
    ]
    assert [event for event in events if event["level"] == "warning" and "evil.example" in event["event"]]


def test_nothing_is_written_to_the_working_directory(local: tuple[Server, Path]) -> None:
    assert {path.name for path in local[1].parent.iterdir()} == {"home", "server.log"}


def test_the_page_is_served(local: tuple[Server, Path]) -> None:
    status, body = _get(local[0], "/")
    assert status == 200
    assert b"<title>MLflow</title>" in body


def test_a_proxy_of_the_environment_is_not_asked(local: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request._opener", None)  # one that was made before has the proxies of that moment
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert problem_of(local[0].url) is None


def test_the_command_holds_no_password_and_the_environment_turns_jobs_off() -> None:
    server = Server(backend="postgresql://stride:secret@db/mlflow", proxied="/artifacts", host="0.0.0.0")  # noqa: S104
    assert not any("secret" in part for part in (*server.command(), *server.migration()))
    environment = server.environment({"A": "b"})
    assert environment["MLFLOW_BACKEND_STORE_URI"].endswith("secret@db/mlflow")
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["A"] == "b"
    assert server.url == "http://127.0.0.1:5000"


def test_artifacts_are_local_or_proxied_not_both_or_neither(tmp_path: Path) -> None:
    for root, proxied in ((None, None), (tmp_path, "x")):
        with pytest.raises(ValueError, match="either artifact_root or proxied"):
            Server(backend="sqlite:///x", artifact_root=root, proxied=proxied)


def test_importing_the_module_imports_no_mlflow() -> None:
    code = "import sys, services.tracking.server; assert not {'mlflow', 'services.training'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_broken_data_base_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(json.dumps({"not": "a data base"}).encode() * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: it cannot be opened"):
        migrate(embedded(home=tmp_path), environment=os.environ)


def test_waiting_ends_with_the_process_and_with_the_time(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    with pytest.raises(RegistryError, match="its process ended"):
        wait_until_ready(url, alive=lambda: False)
    with pytest.raises(RegistryError, match=r"not ready after 0.1 s"):
        wait_until_ready(url, alive=lambda: True, timeout_s=0.1)


def test_the_data_base_of_an_older_mlflow_is_brought_to_this_one_s_schema(tmp_path: Path) -> None:
    """What `migrate` does at an upgrade: to a data base as MLflow 2.0 made it, with a run in it."""
    _schema_of_mlflow_2(tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as data_base:
        data_base.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
            "VALUES (1, 'digits', '/kept', 'active')"
        )
        data_base.execute(
            "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, "
            "artifact_uri, experiment_id) "
            "VALUES ('r1', 'older', 'LOCAL', 'me', 'FINISHED', 1, 2, 'active', '/kept/r1', 1)"
        )
        for table in ("metrics", "latest_metrics"):
            data_base.execute(
                f"INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan) "  # noqa: S608 - the two above
                "VALUES ('best/accuracy', 0.97, 2, 'r1', 3, 0)"
            )
        data_base.execute("INSERT INTO registered_models (name, creation_time) VALUES ('digits', 1)")
        data_base.execute(
            "INSERT INTO model_versions (name, version, creation_time, current_stage, source, run_id, status) "
            "VALUES ('digits', 1, 1, 'None', '/kept/r1', 'r1', 'READY')"
        )
    data_base.close()

    migrate(embedded(home=tmp_path), environment=os.environ)

    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_run("r1")
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"best/accuracy": 0.97})
    client.set_registered_model_alias("digits", "champion", "1")  # aliases are younger than that schema
    assert client.get_model_version_by_alias("digits", "champion").run_id == "r1"


def test_the_data_base_of_a_newer_mlflow_is_refused_and_left_as_it_is(tmp_path: Path, migrated_database: Path) -> None:
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as data_base:
        data_base.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    data_base.close()
    before = (tmp_path / "mlflow.db").read_bytes()

    with pytest.raises(RegistryError, match="ffffffffffff"):
        migrate(embedded(home=tmp_path), environment=os.environ)

    assert (tmp_path / "mlflow.db").read_bytes() == before


def _schema_of_mlflow_2(path: Path) -> None:
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()
    command.upgrade(_get_alembic_config(f"sqlite:///{path}"), "97727af70f4d")  # type: ignore[no-untyped-call]
