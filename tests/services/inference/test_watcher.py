"""services.inference.watcher with a real MLflow server: champions come, bad ones do not, nobody notices the swap."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png

Images = Callable[[int], NDArray[np.uint8]]


def entry(http: httpx.Client, name: str) -> dict[str, Any]:
    models: list[dict[str, Any]] = http.get("/v1/models").json()["models"]
    return next((model for model in models if model["name"] == name), {})


def until(met: Callable[[], bool], timeout_s: float = 10) -> float:
    """Seconds until `met`; 10 s is the promise for a new champion."""
    started = time.monotonic()
    while not met():
        assert time.monotonic() - started < timeout_s
        time.sleep(0.05)
    return time.monotonic() - started


def serving(http: httpx.Client, name: str) -> str | None:
    found = entry(http, name).get("serving")
    return found["version"] if found else None


@pytest.fixture
def model_name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own."""
    return f"model-{zlib.crc32(request.node.name.encode()):08x}"


@pytest.fixture
def promoted(mlflow_server: Any, http: httpx.Client, tiny: Any, tmp_path: Path, model_name: str) -> Iterator[str]:
    """The name of a model whose version 1 (seed 1) is served; afterwards `shapes` is the default again."""
    known = tiny(1).bundle(tmp_path / "first", name=model_name)
    mlflow_server.promote(model_name, mlflow_server.publish(known, name=model_name))
    until(lambda: serving(http, model_name) == "1", timeout_s=20)
    yield model_name
    mlflow_server.promote("shapes", "1")
    until(lambda: bool(http.get("/v1/models").json()["default"] == "shapes"))


def test_a_new_champion_answers_within_seconds_and_no_request_fails_or_mixes(
    mlflow_server: Any, http: httpx.Client, tiny: Any, make_image: Images, tmp_path: Path, promoted: str
) -> None:
    seeds = {"1": 1, "2": 2, "3": 3, "4": 4}
    for version in ("2", "3", "4"):
        known = tiny(seeds[version]).bundle(tmp_path / version, name=promoted)
        assert mlflow_server.publish(known, name=promoted) == version
    seen: list[tuple[int, dict[str, Any]]] = []
    failures: list[object] = []
    ended = threading.Event()

    def load(first: int) -> None:
        with httpx.Client(base_url=http.base_url, timeout=20) as client:
            number = first
            while not ended.is_set():
                number += 1
                try:
                    response = client.post(f"/v1/models/{promoted}/predict", content=encode_png(make_image(number)))
                    response.raise_for_status()
                    seen.append((number, response.json()))
                except httpx.HTTPError as error:
                    failures.append(error)

    threads = [threading.Thread(target=load, args=(1000 * k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    try:
        for version in ("2", "3", "4", "1"):  # the last one is a rollback
            mlflow_server.promote(promoted, version)
            assert until(lambda wanted=version: serving(http, promoted) == wanted) < 10  # type: ignore[misc]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert {answer["model"]["version"] for _, answer in seen} == {"1", "2", "3", "4"}
    for number, answer in seen:
        wanted = tiny(seeds[answer["model"]["version"]]).probabilities(make_image(number)[np.newaxis])[0]
        top = answer["predictions"][0]["top"]
        np.testing.assert_allclose([one["probability"] for one in top], np.sort(wanted)[::-1], atol=1e-5)


@pytest.mark.parametrize("fault", ["no digest", "no uri", "wrong digest", "corrupt file", "wrong golden", "missing"])
def test_a_bad_version_is_put_in_quarantine_and_the_good_one_stays(
    mlflow_server: Any, http: httpx.Client, tiny: Any, tmp_path: Path, promoted: str, fault: str
) -> None:
    options: dict[str, Any] = {
        "no digest": {"digest": ""},
        "no uri": {"uri": ""},
        "wrong digest": {"digest": "0" * 64},
    }.get(fault, {"uri": "runs:/" + "0" * 32 + "/bundle"} if fault == "missing" else {})
    known = tiny(2).bundle(tmp_path / "bad", name=promoted, wrong=0.1 if fault == "wrong golden" else 0)
    if fault == "corrupt file":
        (known.path / "model.onnx").write_bytes(known.read("model.onnx")[:-10])
    version = mlflow_server.publish(known, name=promoted, **options)
    mlflow_server.promote(promoted, version)
    until(lambda: entry(http, promoted)["quarantined"] is not None)
    quarantined = entry(http, promoted)["quarantined"]
    assert quarantined["version"] == version
    assert quarantined["reason"].endswith(".")
    assert serving(http, promoted) != version
    assert f'stride_model_quarantines_total{{model="{promoted}"}} 1.0' in http.get("/metrics").text

    good = mlflow_server.publish(tiny(3).bundle(tmp_path / "good", name=promoted), name=promoted)
    mlflow_server.promote(promoted, good)
    until(lambda: serving(http, promoted) == good)
    assert entry(http, promoted)["quarantined"] is None


def test_a_version_leaves_quarantine_when_its_tags_are_mended(
    mlflow_server: Any, http: httpx.Client, tiny: Any, tmp_path: Path, promoted: str
) -> None:
    known = tiny(2).bundle(tmp_path / "b", name=promoted)
    version = mlflow_server.publish(known, name=promoted, digest="")
    mlflow_server.promote(promoted, version)
    until(lambda: entry(http, promoted)["quarantined"] is not None)
    mlflow_server.client.set_model_version_tag(promoted, version, "stride.bundle_sha256", known.digest)
    until(lambda: serving(http, promoted) == version)


def test_without_a_name_the_model_promoted_last_answers(http: httpx.Client, promoted: str) -> None:
    assert http.get("/v1/models").json()["default"] == promoted
