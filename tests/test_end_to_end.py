"""The whole way with real servers: a folder of images -> fit -> MLflow over HTTP -> gate -> a prediction over HTTP.

MLflow and inference run as `stride serve` starts them; nothing is replaced. Every test has a model of its own.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from contracts.errors import BundleError
from contracts.recipe import Recipe, parse
from contracts.registry import BUNDLE_DIGEST, CHAMPION
from pipelines import promotion
from pipelines.export import export
from pipelines.ship import ShipResult, ship

SWAP_S = 10.0
"""Within this a new champion must be served."""


class Servers:
    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            self.port, self.mlflow_port = one.getsockname()[1], two.getsockname()[1]
        self.home = home
        self.url = f"http://127.0.0.1:{self.port}"
        self.tracking_uri = f"http://127.0.0.1:{self.mlflow_port}"

    def stride(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        ports = {"STRIDE_PORT": str(self.port), "STRIDE_MLFLOW_PORT": str(self.mlflow_port)}
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            env={**os.environ, "STRIDE_HOME": str(self.home), **ports, **environment},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def predict(self, model: str, image: bytes) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/models/{model}/predict", content=image, trust_env=False, timeout=20)

    def wait_for(self, model: str, version: str, image: bytes) -> float:
        """Seconds until `version` answers."""
        started = time.monotonic()
        while True:
            answer = self.predict(model, image)
            if answer.status_code == 200 and answer.json()["model"]["version"] == version:
                return time.monotonic() - started
            assert time.monotonic() - started < 30, answer.text
            time.sleep(0.05)


class Traffic:
    """Requests one after the other while the block runs."""

    def __init__(self, send: Callable[[], httpx.Response]) -> None:
        self.answers: list[tuple[int, str]] = []
        self._send, self._end = send, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.is_set():
            answer = self._send()
            version = answer.json()["model"]["version"] if answer.status_code == 200 else answer.text
            self.answers.append((answer.status_code, version))

    def wait_for(self, version: str) -> None:
        """Until a request of this thread, too, has been answered by the version: others may be ahead of it."""
        until = time.monotonic() + SWAP_S
        while version not in {version for _, version in self.answers}:
            assert time.monotonic() < until, f"no answer of version {version}"
            time.sleep(0.01)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("end-to-end") / "home"
    home.mkdir()
    (home / "mlflow.db").write_bytes(migrated_database.read_bytes())
    running = Servers(home)
    try:
        done = running.stride("serve", "--detach")
        assert done.returncode == 0, done.stderr
        yield running
    finally:
        running.stride("stop")


@pytest.fixture(autouse=True)
def at_the_servers(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_HOME", str(servers.home))
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.tracking_uri)


def photograph(kind: str, seed: int, *, file_format: str = "PNG") -> bytes:
    """A picture of stripes, of its own size and colours: rising bars or falling layers."""
    random = np.random.default_rng(seed)
    height, width = random.integers(20, 60, 2)
    wave = np.sin(np.arange(width if kind == "bars" else height) * random.uniform(0.5, 0.9)) * 100 + 128
    plane = np.broadcast_to(wave if kind == "bars" else wave[:, None], (height, width))
    pixels = plane[..., None] + random.normal(0, 20, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, format=file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for kind, first in (("bars", 0), ("layers", 1000)):
        (root / kind).mkdir()
        for number in range(60):
            file_format = "JPEG" if number % 2 else "PNG"
            path = root / kind / f"{number:03d}.{file_format.lower()}"
            path.write_bytes(photograph(kind, first + number, file_format=file_format))
    (root / "bars" / "broken.jpg").write_bytes(photograph("bars", 7, file_format="JPEG")[:300])
    return root


@pytest.fixture
def recipe(photographs: Path) -> Callable[..., Recipe]:
    def make(model: str, **parts: Any) -> Recipe:
        content: dict[str, Any] = {
            "data": {
                "dataset": "folder",
                "path": str(photographs),
                "image": {"height": 24, "width": 24, "channels": 3},
            },
            "model": {
                "kind": "convnet",
                "blocks": [{"filters": 8, "padding": "same", "norm": "batch"}, {"filters": 8, "padding": "same"}],
                "head": {"output": "sigmoid"},
            },
            "optimizer": {"lr": 0.01},
            "fit": {"epochs": 6, "batch_size": 16, "precision": "fp32"},
            "gate": {"min_accuracy": 0.6},
            **parts,
        }
        return parse({**content, "model_name": model}, name=model)

    return make


def quietly(recipe: Recipe) -> ShipResult:
    return ship(recipe, progress=False)


def test_a_folder_of_images_becomes_a_model_that_answers_over_http(
    servers: Servers, photographs: Path, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    path = tmp_path / "stripes.yaml"
    path.write_text(json.dumps(recipe("stripes").model_dump(mode="json", exclude={"name"})))  # JSON is YAML
    done = servers.stride("ship", str(path), "--json", MLFLOW_TRACKING_URI=servers.tracking_uri)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["verdict"], result["model"], result["version"]) == ("accepted", "stripes", "1")
    assert "broken.jpg" in done.stderr
    servers.wait_for("stripes", "1", photograph("bars", 5))
    for kind in ("bars", "layers"):
        for seed in range(5000, 5005):
            (prediction,) = servers.predict("stripes", photograph(kind, seed)).json()["predictions"]
            assert prediction["label"] == kind
    asked = servers.stride("predict", str(photographs / "bars" / "000.png"), "--url", servers.url, "--model", "stripes")
    assert asked.returncode == 0, asked.stderr  # two classes, fewer than are shown of others
    assert "bars" in asked.stdout
    history = servers.stride("history", "stripes", "--json", MLFLOW_TRACKING_URI=servers.tracking_uri)
    assert [entry["action"] for entry in json.loads(history.stdout)] == ["promote"]


def test_a_new_champion_is_served_within_ten_seconds_and_no_request_fails(
    servers: Servers, recipe: Callable[..., Recipe]
) -> None:
    image = photograph("bars", 1)
    assert quietly(recipe("swapped")).version == "1"
    servers.wait_for("swapped", "1", image)
    with Traffic(lambda: servers.predict("swapped", image)) as traffic:
        second = quietly(recipe("swapped", fit={"epochs": 8, "batch_size": 16, "precision": "fp32"}))
        assert second.version == "2", second.reasons
        assert servers.wait_for("swapped", "2", image) < SWAP_S
        traffic.wait_for("2")
    assert {status for status, _ in traffic.answers} == {200}
    versions = [version for _, version in traffic.answers]
    assert versions == sorted(versions)  # the old one until the swap, the new one from then on
    assert set(versions) == {"1", "2"}


def test_a_worse_candidate_is_refused_with_exit_code_2_and_the_champion_goes_on(
    servers: Servers, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    image = photograph("layers", 1)
    quietly(recipe("guarded"))
    servers.wait_for("guarded", "1", image)
    worse = recipe("guarded", optimizer={"lr": 1e-9}, fit={"epochs": 1, "batch_size": 16, "precision": "fp32"}, gate={})
    path = tmp_path / "worse.yaml"
    path.write_text(json.dumps(worse.model_dump(mode="json", exclude={"name"})))
    done = servers.stride("ship", str(path), "--json", MLFLOW_TRACKING_URI=servers.tracking_uri)
    assert done.returncode == 2
    result = json.loads(done.stdout)
    assert result["verdict"] == "refused"
    assert result["version"] == "1"
    assert any(reason.startswith("failed") for reason in result["reasons"])
    assert servers.predict("guarded", image).json()["model"]["version"] == "1"


def test_a_rollback_brings_the_former_champion_back_while_requests_run(
    servers: Servers, recipe: Callable[..., Recipe]
) -> None:
    image = photograph("layers", 2)
    quietly(recipe("returned"))
    quietly(recipe("returned", fit={"epochs": 8, "batch_size": 16, "precision": "fp32"}))
    servers.wait_for("returned", "2", image)
    with Traffic(lambda: servers.predict("returned", image)) as traffic:
        done = servers.stride("rollback", "returned", MLFLOW_TRACKING_URI=servers.tracking_uri)
        assert done.returncode == 0, done.stderr
        assert servers.wait_for("returned", "1", image) < SWAP_S
    assert {status for status, _ in traffic.answers} == {200}


def test_a_corrupted_bundle_is_refused_by_export_registry_and_server(
    servers: Servers, recipe: Callable[..., Recipe]
) -> None:
    image = photograph("layers", 3)
    first = quietly(recipe("spoiled"))
    second = quietly(recipe("spoiled", fit={"epochs": 8, "batch_size": 16, "precision": "fp32"}))
    assert second.version == "2", second.reasons
    servers.wait_for("spoiled", "2", image)  # or it might still come once version 1 is asked for below
    promotion.rollback("spoiled")
    servers.wait_for("spoiled", "1", image)
    (stored,) = servers.home.glob(f"artifacts/**/{second.run_id}/artifacts/bundle/model.onnx")
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)

    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        export(second.run_id)
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        promotion.promote("spoiled", "2")

    # and where somebody moves the alias by hand, the server keeps the good one and says why
    from mlflow.tracking import MlflowClient

    # (the server may have version 2 as it was in its own store, so the tag asks for a bundle that nobody has)
    client = MlflowClient(servers.tracking_uri)
    client.set_model_version_tag("spoiled", "2", BUNDLE_DIGEST, "0" * 64)
    client.set_registered_model_alias("spoiled", CHAMPION, "2")
    deadline = time.monotonic() + 20
    while True:
        models = httpx.get(f"{servers.url}/v1/models", trust_env=False).json()["models"]
        (entry,) = [item for item in models if item["name"] == "spoiled"]
        if entry.get("quarantined"):
            break
        assert time.monotonic() < deadline, entry
        time.sleep(0.1)
    assert servers.predict("spoiled", image).json()["model"]["version"] == "1"
    assert first.version == "1"
