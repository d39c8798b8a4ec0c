"""64 uint8 tensors a request, binary, against bare onnxruntime with as many threads: in turns, on one core."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import wire
from benchmarks.serving.family import Family, Unfit
from benchmarks.serving.floor import ROWS
from benchmarks.serving.load import Load
from benchmarks.serving.servers import Place, Server
from benchmarks.serving.turn import Bench, running

_HALVES = 2
"""Bare onnxruntime is measured before and behind each of the server's measurements, half as long each time."""


def request(name: str, images: NDArray[np.uint8]) -> bytes:
    """A request of the Open Inference Protocol with its tensor behind the JSON, the answer likewise."""
    raw = images.tobytes()
    given = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    wanted = {"name": "probabilities", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return wire.post(f"/v2/models/{name}/infer", head + raw, "application/octet-stream", headers)


def measure(
    bench: Bench,
    server: Server,
    place: Place,
    images: NDArray[np.uint8],
    floor: Callable[[float], tuple[float, float]],
) -> dict[str, Any]:
    """CPU milliseconds an image of the server and of bare onnxruntime, in `plan.repeats` interleaved measurements.

    Args:
        images: (n, height, width, channels), of which `ROWS` go into each request.
        floor: has bare onnxruntime run batches for so many seconds; CPU seconds and images.

    Raises:
        Unfit: the service refuses, or ends.
    """
    batch = np.ascontiguousarray(np.resize(images, (ROWS, *images.shape[1:])))
    seconds = bench.plan.tensors_s
    pairs: list[tuple[float, float]] = []
    with running(bench, server, place) as (family, _):
        load = Load(place.port, [request(place.registered, batch)])
        _served(family, load, seconds / 2)
        floor(seconds / 2)
        for _ in range(bench.plan.repeats):
            first = floor(seconds / _HALVES)
            ours = _served(family, load, seconds)
            second = floor(seconds / _HALVES)
            bare = (first[0] + second[0]) / (first[1] + second[1])
            pairs.append((1000 * ours, 1000 * bare))
    return {
        "served_ms": [ours for ours, _ in pairs],
        "bare_ms": [bare for _, bare in pairs],
        "ratio": statistics.median(ours / bare for ours, bare in pairs),
        "ratios": [ours / bare for ours, bare in pairs],
    }


def _served(family: Family, load: Load, seconds: float) -> float:
    """CPU seconds an image, over one connection."""
    before = family.cpu_s()
    measured = load.closed(1, seconds)
    cpu_s = family.cpu_s() - before
    if (good := measured.statuses()[200]) != len(measured.answers) or not good:
        raise Unfit(f"{family.name}: tensors were answered {dict(measured.statuses())}")
    return cpu_s / (good * ROWS)
