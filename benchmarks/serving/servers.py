"""Who is measured, how each is started and asked, and how its answer is read."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.serving import wire
from pipelines import processes, serving

_CLEARED: Final = ("STRIDE_", "MLFLOW_", "BENTOML", "PROMETHEUS", "OTEL_", "RAY_", "MLSERVER_", "OMP_", "PYTHONPATH")
"""No setting of whoever starts the benchmark reaches a server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What one start of a server is given."""

    interpreter: Path
    port: int
    more_ports: tuple[int, int]
    """For those that want others as well."""
    scratch: Path
    """An empty directory with a short path."""
    model: Path
    """The ONNX file."""
    labels: tuple[str, ...]
    registered: str = ""
    """The model's name in the registry; Stride's."""
    registry: str = ""
    """MLflow's address; Stride's."""
    settings: dict[str, str] = field(default_factory=dict)
    """Further variables of the environment."""

    def tool(self, name: str) -> str:
        """A command that was installed beside the interpreter."""
        return str(self.interpreter.with_name(name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One of the servers."""

    name: str
    title: str
    lock: str | None
    """The key of its environment in `environments.LOCKS`; None is Stride's own."""
    packages: tuple[str, ...]
    """Whose versions the report tells, the first one being the server itself."""
    setup: str
    """How it was set up, in one sentence."""
    source: str
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], dict[str, str]]
    ready: str
    """A path that answers 200 once it predicts."""
    request: Callable[[bytes], bytes]
    """The request for one PNG."""
    read: Callable[[bytes], list[float]]
    """The probabilities in the body of an answer."""
    proof: Callable[[bytes], bytes] | None = None
    """The request whose answer holds every probability, where `request`'s does not."""
    precision: str = "fp32"

    @property
    def ours(self) -> bool:
        return self.lock is None


def base_environment() -> dict[str, str]:
    """The environment of every server before its own settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_CLEARED)}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _peer(place: Place) -> dict[str, str]:
    return {"BENCH_MODEL": str(place.model), "BENCH_LABELS": json.dumps(place.labels)}


def _mlserver(place: Place) -> dict[str, str]:
    grpc, metrics = place.more_ports
    return {
        **_peer(place),
        "PYTHONPATH": str(processes.ROOT),
        "MLSERVER_HOST": wire.HOST,
        "MLSERVER_HTTP_PORT": str(place.port),
        "MLSERVER_GRPC_PORT": str(grpc),
        "MLSERVER_METRICS_PORT": str(metrics),
        "MLSERVER_METRICS_DIR": str(place.scratch / "metrics"),
        "MLSERVER_ENVIRONMENTS_DIR": str(place.scratch / "environments"),
    }


def _bentoml(place: Place) -> dict[str, str]:
    return {**_peer(place), "BENTOML_HOME": str(place.scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}


def _ray(place: Place) -> dict[str, str]:
    return {**_peer(place), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(processes.ROOT)}


def _stride(place: Place) -> dict[str, str]:
    """As `stride serve` starts it, with the home and the model of this run."""
    return {
        **serving.inference(place.port, place.registry).environment,
        "STRIDE_HOME": str(place.scratch),
        "BENTOML_HOME": str(place.scratch / "bentoml"),
        "STRIDE_MODEL": place.registered,
        "STRIDE_DEVICE": "cpu",
        **place.settings,
    }


def _uvicorn(module: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        address = ["--host", wire.HOST, "--port", str(place.port), "--no-access-log", "--log-level", "warning"]
        return [str(place.interpreter), "-m", "uvicorn", f"benchmarks.serving.peers.{module}:app", *address]

    return command


def _raw(path: str) -> Callable[[bytes], bytes]:
    return lambda png: wire.post(path, png, "image/png")


def _form(path: str, name: str) -> Callable[[bytes], bytes]:
    return lambda png: wire.post(path, *wire.form(name, png))


def _json(path: str, content: Callable[[str], dict[str, Any]]) -> Callable[[bytes], bytes]:
    def request(png: bytes) -> bytes:
        return wire.post(path, json.dumps(content(base64.b64encode(png).decode())).encode(), "application/json")

    return request


def _infer(image: str) -> dict[str, Any]:
    parameters = {"content_type": "base64"}
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": parameters, "data": [image]}]}


def _own(body: bytes) -> list[float]:
    found: list[float] = json.loads(body)["probabilities"]
    return found


def _of_stride(body: bytes) -> list[float]:
    top = json.loads(body)["predictions"][0]["top"]
    return [float(each["probability"]) for each in sorted(top, key=lambda each: int(each["index"]))]


def _ours(name: str, title: str, precision: str) -> Server:
    return Server(
        name=name,
        title=title,
        lock=None,
        packages=("bentoml", "onnxruntime-gpu", "uvicorn", "uvloop", "httptools", "numpy", "pillow"),
        setup="as `stride serve` starts it, with everything on: validation, limits, batcher, metrics, request ids, "
        "drift, the registry polled every 2 s; the PNG is the body, the answer names the five best of ten classes"
        if precision == "fp32"
        else "likewise, with the graph that `stride tune` chose and `ship` serves",
        source="services/inference/service.py",
        command=lambda place: [sys.executable, *serving.inference(place.port, place.registry).command[1:]],
        environment=_stride,
        ready="/readyz",
        request=_raw("/v1/predict"),
        proof=_raw("/v1/predict?top_k=10"),
        read=_of_stride,
        precision=precision,
    )


STRIDE: Final = (
    _ours("stride", "Stride", "fp32"),
    _ours("stride-tuned", "Stride, tuned graph", "int8"),
)
PEERS: Final = (
    Server(
        name="starlette",
        title="Starlette",
        lock="peers",
        packages=("starlette", "uvicorn", "uvloop", "httptools"),
        setup="uvicorn with uvloop and httptools; the PNG is the body; the graph runs on the event loop; nothing is "
        "checked",
        source="benchmarks/serving/peers/starlette_server.py",
        command=_uvicorn("starlette_server"),
        environment=_peer,
        ready="/ready",
        request=_raw("/predict"),
        read=_own,
    ),
    Server(
        name="fastapi",
        title="FastAPI",
        lock="peers",
        packages=("fastapi", "starlette", "uvicorn", "python-multipart"),
        setup="uvicorn with uvloop and httptools; an UploadFile in a form, a declared answer; the graph runs on the "
        "event loop",
        source="benchmarks/serving/peers/fastapi_server.py",
        command=_uvicorn("fastapi_server"),
        environment=_peer,
        ready="/ready",
        request=_form("/predict", "image"),
        read=_own,
    ),
    Server(
        name="bentoml",
        title="BentoML",
        lock="peers",
        packages=("bentoml", "uvicorn"),
        setup="`bentoml serve`, one worker; a batchable API over images in a form with its adaptive batching (up to "
        "64); defaults but for the access log, which is off",
        source="benchmarks/serving/peers/bentoml_service.py",
        command=lambda place: [
            *(str(place.interpreter), "-m", "bentoml", "serve", "benchmarks.serving.peers.bentoml_service:Classifier"),
            *("--host", wire.HOST, "--port", str(place.port)),
        ],
        environment=_bentoml,
        ready="/readyz",
        request=_form("/predict", "images"),
        read=lambda body: list(json.loads(body)[0]),
    ),
    Server(
        name="litserve",
        title="LitServe",
        lock="peers",
        packages=("litserve", "fastapi", "uvicorn"),
        setup="one worker, one HTTP server, `fast_queue`; base64 in JSON as in its examples; no batching",
        source="benchmarks/serving/peers/litserve_server.py",
        command=lambda place: [
            *(str(place.interpreter), "-m", "benchmarks.serving.peers.litserve_server", wire.HOST, str(place.port)),
        ],
        environment=_peer,
        ready="/health",
        request=_json("/predict", lambda image: {"image": image}),
        read=_own,
    ),
    Server(
        name="mlserver",
        title="MLServer",
        lock="mlserver",
        packages=("mlserver", "fastapi", "uvicorn", "orjson"),
        setup="a custom runtime, base64 in JSON of the Open Inference Protocol; the model in the server's own process "
        "(`parallel_workers` 0), debug off; no batching",
        source="benchmarks/serving/peers/mlserver_runtime.py",
        command=lambda place: [place.tool("mlserver"), "start", "benchmarks/serving/peers/mlserver"],
        environment=_mlserver,
        ready="/v2/models/fashion/ready",
        request=_json("/v2/models/fashion/infer", _infer),
        read=lambda body: list(json.loads(body)["outputs"][0]["data"]),
    ),
    Server(
        name="ray",
        title="Ray Serve",
        lock="peers",
        packages=("ray", "starlette", "uvicorn"),
        setup="one replica behind its HTTP proxy, a Ray of its own with one CPU, no dashboard; the PNG is the body; "
        "the access log off",
        source="benchmarks/serving/peers/ray_server.py",
        command=lambda place: [
            *(str(place.interpreter), "-m", "benchmarks.serving.peers.ray_server"),
            *(wire.HOST, str(place.port), str(place.scratch)),
        ],
        environment=_ray,
        ready="/",
        request=_raw("/"),
        read=_own,
    ),
)
BY_NAME: Final = {server.name: server for server in (*STRIDE, *PEERS)}
