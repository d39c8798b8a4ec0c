from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipelines import doctor
from pipelines.cli.main import main
from services.training.journal import Journal


def stride(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def kept(embedded_tracking: str, home: Path) -> str:
    """The id of a run whose journal has not been sent."""
    client = MlflowClient(embedded_tracking)
    run_id: str = client.create_run(client.create_experiment("tiny", str(home / "artifacts"))).info.run_id
    with Journal.open(run_id) as opened:
        opened.append("open", {"run_id": run_id, "name": "tiny-1", "tracking": embedded_tracking, "tags": {}})
        opened.append("metrics", {"metrics": [["train/loss", 0.5, 1, 1]]})
        opened.append("status", {"status": "FINISHED", "at": 2})
    return run_id


def answered(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_nothing_to_send_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("sync") == 0
    assert capsys.readouterr().out == "MLflow has everything: no run is waiting to be sent\n"
    assert stride("sync", "--json") == 0
    assert answered(capsys) == {"journals": []}


def test_what_was_kept_is_sent(kept: str, embedded_tracking: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("sync") == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line == [kept, "tiny-1", "sent", "3", "0"]
    assert MlflowClient(embedded_tracking).get_run(kept).info.status == "FINISHED"
    assert stride("sync", "--json") == 0
    assert answered(capsys) == {"journals": []}


def test_a_server_that_is_away_keeps_it_and_exits_1(
    kept: str, home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    assert stride("sync", "--json") == 1
    (found,) = answered(capsys)["journals"]
    assert (found["run_id"], found["state"], found["left"]) == (kept, "kept", 3)
    assert "no answer" in found["problem"]
    assert stride("sync") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split() == [kept, "tiny-1", "kept", "0", "3"]
    assert "no answer" in captured.err
    assert (home / "journal" / kept).is_dir()


def test_what_is_given_up_is_gone(kept: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("sync", "--discard", kept, "--json") == 0
    (found,) = answered(capsys)["journals"]
    assert (found["run_id"], found["state"], found["left"]) == (kept, "discarded", 3)
    assert list((home / "journal").iterdir()) == []
    assert stride("sync", "--discard", kept) == 1
    assert f"error: run '{kept}'" in capsys.readouterr().err


def test_the_doctor_names_what_is_kept(kept: str, home: Path) -> None:
    (check,) = doctor._journal()
    assert check.status == "warn"
    assert f"does not have all of 1 runs ({kept})" in check.detail
    assert "stride sync" in check.remedy
    assert stride("sync") == 0
    (check,) = doctor._journal()
    assert check.status == "ok"
