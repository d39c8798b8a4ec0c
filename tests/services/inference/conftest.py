"""Tiny real parts: a 1 kB ONNX model, its bundle, an MLflow server and the service, each in its own process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from contracts import bundle, registry
from contracts.bundle import Bundle, Golden, Manifest, Provenance
from contracts.images import ImageSpec, encode_png

LABELS = ("circle", "square", "triangle")
SPEC = ImageSpec(height=8, width=8, channels=1)
ROOT = Path(__file__).parents[3]


@dataclass
class Tiny:
    """A model of 8 x 8 gray images and three classes; the seed decides its weights."""

    seed: int = 1

    @property
    def weights(self) -> NDArray[np.float32]:
        return (np.random.default_rng(self.seed).normal(size=(64, 3)) * 0.01).astype(np.float32)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the graph answers, computed by numpy: (n, 8, 8, 1) -> (n, 3)."""
        logits = images.reshape(len(images), -1).astype(np.float32) @ self.weights
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), dtype=np.float32)

    def graph(self) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["floats"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 1])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(self.weights, "weights")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def bundle(
        self, path: Path, *, name: str = "shapes", model: onnx.ModelProto | None = None, wrong: float = 0
    ) -> Bundle:
        """Write a bundle of it; `wrong` is added to what the golden image is said to have answered."""
        golden = image(0)
        answer = [float(p) + wrong for p in self.probabilities(golden[np.newaxis])[0]]
        provenance = Provenance(
            run_id="0" * 32,
            recipe="tiny",
            recipe_hash="r",
            data_fingerprint="d",
            test_fingerprint="t",
            code_version="c",
            created_at="2026-01-01T00:00:00Z",
        )
        manifest = Manifest(
            name=name,
            labels=LABELS,
            input=SPEC,
            tolerance=1e-5,
            metrics={"test/accuracy": 0.9},
            provenance=provenance,
            golden=(Golden(file="golden-0.png", probabilities=tuple(answer)),),
            files={},
        )
        files = {"model.onnx": (model or self.graph()).SerializeToString(), "golden-0.png": encode_png(golden)}
        return bundle.write(path, manifest, files)


def image(seed: int) -> NDArray[np.uint8]:
    """A random image of the tiny model, (8, 8, 1)."""
    return np.random.default_rng(seed).integers(0, 256, size=SPEC.shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny() -> type[Tiny]:
    return Tiny


@pytest.fixture(scope="session")
def make_image() -> Callable[[int], NDArray[np.uint8]]:
    return image


@dataclass
class Service:
    """`bentoml serve` as users start it, on a free port."""

    home: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.port = free_port()
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("STRIDE_", "MLFLOW_", "PROMETHEUS"))
        }
        env |= {
            "STRIDE_HOME": str(self.home),
            "STRIDE_POLL_SECONDS": "0.3",
            "STRIDE_DEVICE": "cpu",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # nobody listens: the registry is away
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_HOME": str(self.home / "bentoml"),
            **self.environment,
        }
        command = [sys.executable, "-m", "bentoml", "serve", "services.inference.service:Inference"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)], cwd=ROOT, env=env, stdout=log, stderr=log
            )

    def wait(self, path: str = "/readyz", status: int = 200, timeout_s: float = 100) -> httpx.Response:
        """Until GET `path` answers with `status`."""
        assert self.process is not None
        until = time.monotonic() + timeout_s
        last = "no answer"
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                response = httpx.get(self.url + path)
                if response.status_code == status:
                    return response
                last = f"{response.status_code} {response.text}"
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer {status} in {timeout_s} s: {last}\n{self.log.read_text()}")

    def settle(self) -> None:
        """Until the process that asks the registry has its libraries: the registry, which is away, has not answered."""
        until = time.monotonic() + 60
        while httpx.get(f"{self.url}/v1/models").json()["registry_error"] is None:
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def terminate(self) -> int:
        """SIGTERM, and the exit status; 10 s is the stated grace."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=10)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


StartService = Callable[..., Service]


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start a service of the test's own; keywords are environment variables; `stored` fills its store beforehand."""
    yield from starting(tmp_path)


@pytest.fixture(scope="module")
def start_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartService]:
    """Likewise, one that the tests of a module share, none of which may alter it."""
    yield from starting(tmp_path_factory.mktemp("shared"))


def starting(path: Path) -> Iterator[StartService]:
    started: list[Service] = []

    def start(*, stored: Mapping[str, Bundle] | None = None, **environment: str) -> Service:
        service = Service(home=path / "home", log=path / "service.log", environment=environment)
        for name, known in (stored or {}).items():
            keep(service.home, name, known)
        service.start()
        started.append(service)
        return service

    yield start
    for service in started:
        service.end()


def keep(home: Path, name: str, known: Bundle, version: str = "1") -> None:
    """Put a bundle into a store as the last one that was served."""
    from services.inference.store import Served, Store

    store = Store(home / "serving")
    store.install(name, known.digest, lambda staging: Path(shutil.copytree(known.path, staging / "bundle")))
    store.remember(Served(name, version, known.digest, 1))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service as nobody has configured it, with a stored `shapes` (seed 1), shared by the session."""
    home = tmp_path_factory.mktemp("plain")
    keep(home / "home", "shapes", Tiny(1).bundle(home / "shapes"))
    service = Service(home / "home", home / "log")
    service.start()
    try:
        service.wait()
        yield service
    finally:
        service.end()


@dataclass
class Mlflow:
    """A real MLflow server and what a promotion does with it."""

    url: str

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.url, registry_uri=self.url)

    def publish(self, known: Bundle, *, name: str, digest: str | None = None, uri: str | None = None) -> str:
        """Log the bundle as artifacts of a run and register a version of it; the version."""
        client = self.client
        run = client.create_run("0").info
        run_id = run.run_id
        client.log_artifacts(run_id, str(known.path), registry.BUNDLE_ARTIFACT)
        with contextlib.suppress(Exception):  # it exists already
            client.create_registered_model(name)
        uri = f"runs:/{run_id}/{registry.BUNDLE_ARTIFACT}" if uri is None else uri
        tags = {registry.BUNDLE_URI: uri, registry.BUNDLE_DIGEST: known.digest if digest is None else digest}
        version = client.create_model_version(
            name, run.artifact_uri, run_id=run_id, tags={key: value for key, value in tags.items() if value}
        )
        return str(version.version)

    def promote(self, name: str, version: str) -> None:
        client = self.client
        client.set_registered_model_alias(name, registry.CHAMPION, version)
        client.set_registered_model_tag(name, registry.PROMOTED_AT, str(time.time_ns() // 1_000_000))


@pytest.fixture(scope="session")
def mlflow_server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    home = tmp_path_factory.mktemp("mlflow")
    shutil.copy(migrated_database, home / "mlflow.db")
    # As the server's own would be: artifacts go through it, not past it into a directory that both sides happen to see.
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0' WHERE experiment_id = 0")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination",
        str(home / "artifacts"),
    ]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 300  # seconds on an idle machine
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            assert time.monotonic() < until, (home / "log").read_text()
            assert process.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        yield Mlflow(url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.fixture(scope="session")
def served(mlflow_server: Mlflow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on the MLflow server, with version 1 of `shapes` (seed 1) as the champion, shared by the session."""
    home = tmp_path_factory.mktemp("served")
    version = mlflow_server.publish(Tiny(1).bundle(home / "shapes"), name="shapes")
    mlflow_server.promote("shapes", version)
    limits = {"STRIDE_MODEL": "", "STRIDE_MAX_BYTES": "200000", "STRIDE_MAX_PARTS": "8"}
    service = Service(home / "home", home / "log", {"MLFLOW_TRACKING_URI": mlflow_server.url, **limits})
    service.start()
    try:
        service.wait()
        yield service
    finally:
        service.end()


@pytest.fixture(scope="session")
def http(served: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20) as client:
        yield client


@pytest.fixture
def model_name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own."""
    return f"model-{zlib.crc32(request.node.name.encode()):08x}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
