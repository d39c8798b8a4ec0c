"""What MLflow holds after a replay, and after a second one: real runs in SQLite."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from services.training import journal_replay
from services.training.journal import Journal
from services.training.journal_replay import refusal, send_next, send_refused

NOW = 1_700_000_000_000


@pytest.fixture
def client(embedded_tracking: str) -> MlflowClient:
    return MlflowClient(embedded_tracking)


@pytest.fixture
def run_id(client: MlflowClient, home: Path) -> str:
    experiment = client.create_experiment("tiny", str(home / "artifacts"))
    created: str = client.create_run(experiment).info.run_id
    return created


def everything(opened: Journal) -> None:
    """An entry of every kind."""
    opened.append("open", {"run_id": opened.run_id, "tags": {}})
    opened.append("parameters", {"values": {"lr": "0.1"}})
    opened.append("tags", {"values": {"stage": "first", "error": "x"}})
    for epoch in range(1, 4):
        metrics = [["train/loss", 1 / epoch, NOW + epoch, epoch], ["odd", "nan", NOW, epoch], ["far", "-inf", NOW, 0]]
        opened.append("metrics", {"metrics": metrics})
    dataset = {"name": "d", "digest": "1", "source_type": "local", "source": "{}", "schema": "{}", "profile": "{}"}
    opened.append("inputs", {"dataset": dataset, "tags": {"mlflow.data.context": "training"}})
    opened.append("artifact", {"path": "a/b.txt", "spool": opened.spool("b.txt", b"content")})
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    opened.append(
        "image",
        {"path": "images/grad-cam+step+1+x", "shape": [20, 30, 3], "spool": opened.spool("p", pixels.tobytes())},
    )
    opened.append("tags", {"values": {"error": None, "never": None}})
    opened.append("tags", {"values": {"stage": "last"}})
    opened.append("status", {"status": "FINISHED", "at": NOW + 9})


def held(client: MlflowClient, run_id: str, home: Path) -> dict[str, Any]:
    """All that MLflow holds of a run; metrics as rows of its table, of which a duplicate would be two."""
    run = client.get_run(run_id)
    with sqlite3.connect(home / "mlflow.db") as database:
        query = "select key, value, timestamp, step, is_nan from metrics where run_uuid = ? order by 1, 4"
        rows = database.execute(query, (run_id,)).fetchall()
    files = {str(path.relative_to(home)): path.read_bytes() for path in (home / "artifacts").rglob("*.*")}
    assert run.inputs is not None
    return {
        "rows": rows,
        "latest": {key: value for key, value in run.data.metrics.items() if key != "odd"},
        "parameters": run.data.params,
        "tags": run.data.tags,
        "status": (run.info.status, run.info.end_time),
        "inputs": [entry.dataset.to_dictionary() for entry in run.inputs.dataset_inputs],
        "files": files,
    }


def drain(client: MlflowClient, opened: Journal) -> None:
    while not opened.drained:
        assert send_next(client, opened) > 0


def test_a_run_holds_what_the_journal_does(client: MlflowClient, run_id: str, home: Path) -> None:
    with Journal.open(run_id) as opened:
        everything(opened)
        drain(client, opened)
        assert opened.refused == {}
    found = held(client, run_id, home)
    assert [row[:4] for row in found["rows"] if row[0] == "train/loss"] == [
        ("train/loss", 1 / epoch, NOW + epoch, epoch) for epoch in (1, 2, 3)
    ]
    assert len(found["rows"]) == 7  # -inf was logged three times at one time and step
    assert found["parameters"] == {"lr": "0.1"}
    assert found["tags"]["stage"] == "last"
    assert "error" not in found["tags"]
    assert found["tags"]["mlflow.loggedImages"] == "True"
    assert found["status"] == ("FINISHED", NOW + 9)
    assert len(found["inputs"]) == 1
    prefix = f"artifacts/{run_id}/artifacts/"
    assert found["files"][f"{prefix}a/b.txt"] == b"content"
    images = {f"{prefix}images/grad-cam+step+1+x.png", f"{prefix}images/grad-cam+step+1+x+compressed.webp"}
    assert images <= set(found["files"])
    assert not list((home / "journal").rglob("spool/*/*"))


def test_a_second_replay_changes_nothing(client: MlflowClient, run_id: str, home: Path) -> None:
    """As after a kill between the server's answer and the note of it."""
    with Journal.open(run_id) as opened:
        everything(opened)
        spool = {path: path.read_bytes() for path in opened.path.rglob("spool/*/*")}
        drain(client, opened)
    once = held(client, run_id, home)
    for path, data in spool.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    (home / "journal" / run_id / "state.json").unlink()
    with Journal.open(run_id) as again:
        assert len(list(again.entries())) == len(again.unsent())
        drain(client, again)
        assert again.refused == {}
    assert held(client, run_id, home) == once


def test_many_small_entries_go_in_few_requests(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests_made = []
    original = client.log_batch

    def counting(*arguments: Any) -> None:
        requests_made.append(sum(len(values) for values in arguments[1:]))
        original(*arguments)

    monkeypatch.setattr(client, "log_batch", counting)
    with Journal.open(run_id) as opened:
        for step in range(300):
            opened.append("metrics", {"metrics": [[f"m{key}", 0.5, NOW + step, step] for key in range(7)]})
            opened.append("tags", {"values": {f"tag{step}": "x"}})
        drain(client, opened)
    assert sum(requests_made) == 300 * 8
    assert max(requests_made) <= 1000
    assert len(requests_made) <= 5
    assert len(client.get_metric_history(run_id, "m0")) == 300
    assert len([key for key in client.get_run(run_id).data.tags if key.startswith("tag")]) == 300


def test_what_mlflow_refuses_is_set_aside_and_the_rest_arrives(
    client: MlflowClient, run_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal.open(run_id) as opened:
        opened.append("metrics", {"metrics": [["good", 1.0, NOW, 1]]})
        opened.append("metrics", {"metrics": [["bad(name)", 1.0, NOW, 1]]})
        opened.append("metrics", {"metrics": [["better", 2.0, NOW, 1]]})
        opened.append("status", {"status": "FINISHED", "at": NOW})
        drain(client, opened)
        assert set(opened.refused) == {2, 4}
        assert "bad(name)" in opened.refused[2]
    assert client.get_run(run_id).data.metrics == {"good": 1.0, "better": 2.0}
    assert client.get_run(run_id).info.status == "RUNNING"  # what is not complete is not finished
    assert "MLflow refuses the metrics bad(name)" in caplog.text


def test_what_was_refused_and_then_is_taken_ends_the_run(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.open(run_id) as opened:
        opened.append("artifact", {"path": "weights", "spool": opened.spool("weights", b"content")})
        opened.append("status", {"status": "FINISHED", "at": NOW})
        too_large = requests.Response()
        too_large.status_code = 413
        with monkeypatch.context() as patched:
            patched.setattr(client, "log_artifact", _raise(requests.HTTPError("413 too large", response=too_large)))
            drain(client, opened)
        assert set(opened.refused) == {1, 2}
        send_refused(client, opened)
        assert opened.refused == {}
    assert [item.path for item in client.list_artifacts(run_id)] == ["weights"]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_failed_run_is_closed_whatever_was_refused(client: MlflowClient, run_id: str) -> None:
    with Journal.open(run_id) as opened:
        opened.append("metrics", {"metrics": [["bad(name)", 1.0, NOW, 1]]})
        opened.append("status", {"status": "FAILED", "at": NOW})
        drain(client, opened)
    assert client.get_run(run_id).info.status == "FAILED"


def test_a_damaged_file_is_refused_by_name(client: MlflowClient, run_id: str) -> None:
    with Journal.open(run_id) as opened:
        opened.append("artifact", {"path": "a", "spool": opened.spool("a", b"content")})
        opened.spooled(opened.unsent()[0]).write_bytes(b"")
        drain(client, opened)
        assert "is damaged" in opened.refused[1]


def test_what_arrived_before_the_server_went_away_is_not_sent_again(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.open(run_id) as opened:
        for name in ("a", "b", "c"):
            opened.append("artifact", {"path": name, "spool": opened.spool(name, b"x")})
        original, sent = client.log_artifact, []

        def once(run: str, path: str, folder: str | None) -> None:
            sent.append(Path(path).name)
            if len(sent) == 2:
                raise MlflowException("connection refused")
            original(run, path, folder)

        monkeypatch.setattr(client, "log_artifact", once)
        with pytest.raises(MlflowException, match="connection refused"):
            send_next(client, opened)
        drain(client, opened)
    assert sent == ["a", "b", "b", "c"]


def test_a_run_that_somebody_deleted_takes_nothing_and_loses_nothing(client: MlflowClient, run_id: str) -> None:
    client.delete_run(run_id)
    with Journal.open(run_id) as opened:
        opened.append("metrics", {"metrics": [["a", 1.0, NOW, 1]]})
        opened.append("status", {"status": "FINISHED", "at": NOW})
        drain(client, opened)
        client.restore_run(run_id)
        send_refused(client, opened)
        assert opened.refused == {}
    assert client.get_run(run_id).data.metrics == {"a": 1.0}


def _response(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} error", response=response)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (MlflowException.invalid_parameter_value("no"), True),
        (MlflowException("API request failed with exception"), False),
        (_response(413), True),
        (_response(404), False),  # a proxy whose server is being restarted
        (_response(401), False),
        (_response(503), False),
        (requests.ConnectionError("refused"), False),
        (OSError("no space left"), False),
        (requests.exceptions.JSONDecodeError("no JSON", "", 0), False),
        (json.JSONDecodeError("no JSON", "", 0), False),
        (ValueError("is damaged"), True),
    ],
)
def test_what_may_be_taken_later_is_told_from_what_never_will(error: Exception, final: bool) -> None:
    assert (refusal(error) is not None) is final


def test_sending_takes_about_a_second_at_once(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_replay, "_ROUND_S", 0.0)
    with Journal.open(run_id) as opened:
        for name in ("a", "b", "c"):
            opened.append("artifact", {"path": name, "spool": opened.spool(name, b"x")})
        assert send_next(client, opened) == 1
        assert json.loads((opened.path / "state.json").read_text())["acknowledged"] == 1


def test_mlflow_keeps_a_metric_of_one_time_step_and_value_once(client: MlflowClient, run_id: str, home: Path) -> None:
    """What all of this rests on; another version of MLflow might do otherwise."""
    for _ in range(2):
        client.log_batch(run_id, [Metric("a", 0.1 + 0.2, NOW, 1), Metric("b", float("nan"), NOW, 1)])
    assert [len(client.get_metric_history(run_id, key)) for key in "ab"] == [1, 1]


def _raise(error: Exception) -> Any:
    def call(*_: object) -> None:
        raise error

    return call
