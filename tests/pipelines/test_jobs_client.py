"""`stride jobs` and its client, against the service's own routes behind a real socket; no Ray is behind them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from contracts.errors import RequestError
from pipelines.cli.main import main
from pipelines.job_work import resolve, share_of
from pipelines.jobs_client import JobsClient, ServiceAway
from services.training.jobs.app import build
from services.training.jobs.files import JobFiles
from services.training.jobs.job import Job, Share
from services.training.jobs.service import Service
from services.training.jobs.settings import read
from services.training.jobs.store import Store
from tests.services.training.jobs.conftest import service_of


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = read({"STRIDE_HOME": str(tmp_path), "RAY_ADDRESS": "http://127.0.0.1:9"})
    store = Store(settings.jobs)
    yield service_of(store, settings, resolve=resolve, share=lambda request: share_of(request, Share(), available=0))
    store.close()


@pytest.fixture
def client(service: Service, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsClient]:
    server = uvicorn.Server(uvicorn.Config(build(service), port=free_port, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    monkeypatch.setenv("STRIDE_JOBS_URL", f"http://127.0.0.1:{free_port}")
    with JobsClient() as opened:
        yield opened
    server.should_exit = True
    thread.join()


def stride(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["jobs", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def only(service: Service) -> Job:
    (job,) = service.store.page(state=None, before=None, limit=9)
    return job


def test_a_job_is_posted_with_the_recipe_whole(
    service: Service, client: JobsClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stride("submit", "train", "digits", "--set", "fit.epochs=3", "--key", "k", "--json") == 0
    assert stride("submit", "train", "digits", "--set", "fit.epochs=3", "--key", "k") == 0
    job = only(service)
    assert json.loads(capsys.readouterr().out.partition("\njob ")[0])["id"] == job.id
    assert "epochs: 3" in job.work.document
    assert job.work.recipe == "digits"


def test_a_recipe_file_is_sent_and_not_its_path(service: Service, client: JobsClient, tmp_path: Path) -> None:
    from pipelines import recipe_files

    path = tmp_path / "mine.yaml"
    path.write_text((recipe_files.DIRECTORY / "digits.yaml").read_text())
    assert stride("submit", "ship", str(path)) == 0
    assert only(service).work.recipe == "mine"


def test_a_sweeps_space_is_sent_key_by_key(service: Service, client: JobsClient) -> None:
    space = ("--space", "optimizer.lr=loguniform(1e-4, 1e-1)", "--space", "fit.batch_size = choice(32, 64)")
    assert stride("submit", "sweep", "digits", "--trials", "3", *space) == 0
    assert only(service).request["space"] == {
        "optimizer.lr": "loguniform(1e-4, 1e-1)",
        "fit.batch_size": "choice(32, 64)",
    }


def test_what_the_service_refuses_is_its_sentence_and_exit_code_2(
    client: JobsClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stride("submit", "trane", "digits") == 2
    assert capsys.readouterr().err == "error: job: kind is 'trane'; input should be 'train', 'ship' or 'sweep'.\n"
    assert stride("show", "0123") == 2
    assert "job '0123' is not known" in capsys.readouterr().err
    assert stride("show", "../jobs") == 2
    assert "job '../jobs' is not an id" in capsys.readouterr().err


def test_jobs_are_listed_shown_and_cancelled(
    service: Service, client: JobsClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stride("list") == 0
    assert capsys.readouterr().out == "no jobs\n"
    job_id = client.submit({"kind": "train", "recipe": "digits"})["id"]
    assert stride("list") == 0
    assert job_id in capsys.readouterr().out
    assert stride("cancel", job_id) == stride("cancel", job_id) == 0
    assert "state          cancelled" in capsys.readouterr().out
    assert stride("list", "--state", "queued", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1), ("refused", 2)])
def test_a_followed_log_ends_with_the_jobs_exit_code(
    service: Service, client: JobsClient, state: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = client.submit({"kind": "train", "recipe": "digits"})["id"]

    def work() -> None:
        time.sleep(0.3)
        JobFiles(service.settings.jobs, job_id).note("a line")
        service.store.end(only(service), state)  # type: ignore[arg-type] # one of them

    working = threading.Thread(target=work)
    working.start()
    assert stride("logs", job_id, "--follow") == code
    working.join()
    captured = capfd.readouterr()
    assert "--- a line\n" in captured.err
    assert f"state          {state}" in captured.out
    assert stride("logs", job_id) == 0
    assert capfd.readouterr().out == "--- a line\n"


def test_a_followed_log_goes_on_where_it_was_after_a_restart_of_the_service(
    service: Service, client: JobsClient
) -> None:
    job_id = client.submit({"kind": "train", "recipe": "digits"})["id"]
    files = JobFiles(service.settings.jobs, job_id)
    files.note("first")
    seen = b""
    for piece in client.log(job_id, follow=True):
        seen += piece
        if seen.endswith(b"first\n"):
            service.draining = True  # it lets go of its followers, as at its end
            files.note("second")
        elif seen.endswith(b"second\n"):
            service.draining = False
            service.store.end(only(service), "succeeded")
    assert seen == b"--- first\n--- second\n"


def test_a_service_that_is_away_is_one_sentence_and_exit_code_1(
    free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRIDE_JOBS_URL", f"http://127.0.0.1:{free_port}")
    assert stride("list") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: no answer from the training service at http://127.0.0.1:{free_port}")
    assert error.count("\n") == 1


def test_what_is_no_training_service_is_said(free_port: int) -> None:
    import http.server

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with (
            JobsClient(f"http://127.0.0.1:{free_port}") as client,
            pytest.raises(RequestError, match="answers HTTP 404, which no training service does"),
        ):
            client.jobs()
        server.shutdown()
        thread.join()


def test_a_key_is_sent_as_a_bearer_token(free_port: int) -> None:
    with JobsClient(f"http://127.0.0.1:{free_port}", key="k" * 16) as client:
        assert client._client.headers["authorization"] == f"Bearer {'k' * 16}"
        with pytest.raises(ServiceAway):
            client.jobs()
