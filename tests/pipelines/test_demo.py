"""`make demo` and `stride serve` as a user meets them: real fits, both servers, a real prediction, nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from pipelines import demo
from pipelines.processes import Record, ServerError, members
from pipelines.serving import NAMES
from pipelines.ship import ShipResult


class Place:
    """A STRIDE_HOME with two free ports, and the output of the demo that ran there."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self.port, self.mlflow_port = one.getsockname()[1], two.getsockname()[1]
        self.home = home
        self.output = ""
        self.environment = {
            **os.environ,
            "STRIDE_HOME": str(home),
            "STRIDE_PORT": str(self.port),
            "STRIDE_MLFLOW_PORT": str(self.mlflow_port),
        }

    def run(self, *module: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *module]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=220, check=False)

    def records(self) -> dict[str, Record]:
        found = (json.loads((self.home / "run" / f"{name}.json").read_text()) for name in NAMES)
        return {record["name"]: Record(**record) for record in found}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("demo") / "home")
    try:
        done = place.run("pipelines.demo")
        assert done.returncode == 0, done.stderr
        place.output = done.stdout
        yield place
    finally:
        place.run("pipelines.cli", "stop")


@pytest.mark.parametrize("champion", ["4", None])
def test_a_refusal_ends_the_demo_only_where_there_is_no_champion_to_serve(
    champion: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"recipe": "digits", "run_id": "r", "parameters": 1, "images_per_second": 1.0, "seconds": 1.0}
    run |= {"validation_accuracy": 0.9, "test_accuracy": 0.9, "test_loss": 0.1}
    refused = ShipResult(
        verdict="refused",
        reasons=("failed champion: it is better",),
        model="digits",
        version=champion,
        former=champion,
        run_id="r",
        test_accuracy=0.9,
        runs=(run,),
    )
    # An earlier champion that real fits of this second cannot beat takes minutes to make.
    monkeypatch.setattr("pipelines.ship.ship", lambda *_, **__: refused)
    if champion is None:
        with pytest.raises(ServerError, match="the gate refused the best run"):
            demo._ship()
    else:
        assert demo._ship() == refused
        assert "served as digits version 4: the best run was refused, the champion stays" in capsys.readouterr().out


def test_three_networks_are_compared_and_one_is_served(place: Place) -> None:
    rows = re.findall(r"^(digits\S*) .*$", place.output, re.MULTILINE)
    assert rows == ["digits", "digits-wide", "digits-batchnorm"]
    assert place.output.count("  champion\n") == 1


def test_the_curl_line_that_is_printed_gets_the_right_answer(place: Place) -> None:
    line = re.search(r"curl -F image=@(\S+/digit-(\d)\.png) (\S+)", place.output)
    assert line is not None
    path, label, url = line.groups()
    answer = httpx.post(url, files={"image": Path(path).read_bytes()}, trust_env=False)
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["label"] == label


def test_mlflow_shows_the_runs_with_the_same_metrics(place: Place) -> None:
    api = f"http://127.0.0.1:{place.mlflow_port}/api/2.0/mlflow"
    with httpx.Client(trust_env=False) as client:
        found = client.get(f"{api}/experiments/get-by-name", params={"experiment_name": "digits"}).json()
        body = {"experiment_ids": [found["experiment"]["experiment_id"]]}
        runs = client.post(f"{api}/runs/search", json=body).json()["runs"]
    keys = [{metric["key"] for metric in run["data"]["metrics"] if metric["key"].startswith("test/")} for run in runs]
    assert len(keys) == 3
    assert keys[0] == keys[1] == keys[2] != set()


def test_a_second_demo_reuses_the_runs_and_the_servers(place: Place) -> None:
    before = place.records()
    done = place.run("pipelines.demo")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(reused)") == 3
    assert place.records() == before


def test_serve_in_the_foreground_takes_running_servers_and_ends_them_on_ctrl_c(place: Place) -> None:
    """Last: it stops what the tests above need."""
    before = place.records()
    command = [sys.executable, "-m", "pipelines.cli", "serve"]
    with subprocess.Popen(command, env=place.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()) != "Ctrl-C stops both\n":
            assert line, "serve ended by itself"
        family = [one for record in place.records().values() for one in members(record)]
        assert len(family) >= 2
        assert place.records() == before
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)
    assert not list((place.home / "run").glob("*.json"))
