"""services.inference.watcher with a real MLflow server: champions come, bad ones do not, nobody notices the swap."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from contracts.images import encode_png
from contracts.registry import CHAMPION, QUARANTINED, Quarantine
from services.inference.loader import Loader
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.provider import CPU, Provider
from services.inference.registry import Registered, Wanted
from services.inference.settings import Settings
from services.inference.store import Served
from services.inference.watcher import Watcher

Images = Callable[[int], NDArray[np.uint8]]
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
PROVIDER = Provider(CPU, "a test")


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
    step = {"no digest": "tags", "no uri": "tags", "wrong golden": "load", "missing": "fetch"}.get(fault, "verify")
    assert quarantined["step"] == step
    metrics = http.get("/metrics").text
    assert f'stride_model_quarantines_total{{model="{promoted}",step="{step}"}} 1.0' in metrics
    assert f'stride_model_quarantined{{model="{promoted}"}} 1.0' in metrics
    # Written a moment after it is told here.
    until(lambda: QUARANTINED in mlflow_server.client.get_model_version(promoted, version).tags)
    mark = Quarantine.of(mlflow_server.client.get_model_version(promoted, version).tags)
    assert mark is not None
    assert mark.reason == quarantined["reason"]
    assert str(tmp_path) not in mark.reason

    good = mlflow_server.publish(tiny(3).bundle(tmp_path / "good", name=promoted), name=promoted)
    mlflow_server.promote(promoted, good)
    until(lambda: serving(http, promoted) == good)
    assert entry(http, promoted)["quarantined"] is None
    assert f'stride_model_quarantined{{model="{promoted}"}} 0.0' in http.get("/metrics").text


def test_a_mended_version_is_tried_again_when_its_tag_is_taken_off(
    mlflow_server: Any, http: httpx.Client, tiny: Any, tmp_path: Path, promoted: str
) -> None:
    known = tiny(2).bundle(tmp_path / "b", name=promoted)
    whole = known.read("model.onnx")
    (known.path / "model.onnx").write_bytes(whole[:-10])
    version = mlflow_server.publish(known, name=promoted)
    mlflow_server.promote(promoted, version)
    client = mlflow_server.client
    until(lambda: QUARANTINED in client.get_model_version(promoted, version).tags)
    since = entry(http, promoted)["quarantined"]["since"]
    (known.path / "model.onnx").write_bytes(whole)
    run_id = client.get_model_version(promoted, version).run_id
    client.log_artifact(run_id, str(known.path / "model.onnx"), "bundle")
    time.sleep(1)  # some three looks: nobody has asked for another try
    assert entry(http, promoted)["quarantined"]["since"] == since
    client.delete_model_version_tag(promoted, version, QUARANTINED)
    until(lambda: serving(http, promoted) == version)
    assert QUARANTINED not in client.get_model_version(promoted, version).tags


def test_a_version_leaves_quarantine_when_its_tags_are_mended(
    mlflow_server: Any, http: httpx.Client, tiny: Any, tmp_path: Path, promoted: str
) -> None:
    known = tiny(2).bundle(tmp_path / "b", name=promoted)
    version = mlflow_server.publish(known, name=promoted, digest="")
    mlflow_server.promote(promoted, version)
    until(lambda: entry(http, promoted)["quarantined"] is not None)
    mlflow_server.client.set_model_version_tag(promoted, version, "stride.bundle_sha256", known.digest)
    until(lambda: serving(http, promoted) == version)
    until(lambda: QUARANTINED not in mlflow_server.client.get_model_version(promoted, version).tags)


def test_without_a_name_the_model_promoted_last_answers(http: httpx.Client, promoted: str) -> None:
    assert http.get("/v1/models").json()["default"] == promoted


def test_thirty_swaps_leave_no_memory_threads_or_files_behind(
    mlflow_server: Any, served: Any, http: httpx.Client, tiny: Any, tmp_path: Path, promoted: str
) -> None:
    (worker,) = (
        child for child in psutil.Process(served.process.pid).children() if "worker" in " ".join(child.cmdline())
    )
    versions = ["1"]
    for seed in (2, 3):
        # 8 MB of weights that change no answer, but that no optimizer can leave out: a version that is kept shows.
        model = tiny(seed).graph()
        ballast = {
            "wide": np.full((64, 32_768), seed, dtype=np.float32),
            "zero": np.zeros((32_768, 3), dtype=np.float32),
        }
        model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in ballast.items())
        softmax = model.graph.node.pop()
        for operator, inputs, output in (("MatMul", ["flat", "wide"], "much"), ("MatMul", ["much", "zero"], "nothing")):
            model.graph.node.append(onnx.helper.make_node(operator, inputs, [output]))
        model.graph.node.append(onnx.helper.make_node("Add", ["logits", "nothing"], ["sum"]))
        softmax.input[0] = "sum"
        model.graph.node.append(softmax)
        known = tiny(seed).bundle(tmp_path / str(seed), name=promoted, model=model)
        versions.append(mlflow_server.publish(known, name=promoted))

    def swap(number: int) -> None:
        version = versions[1 + number % 2]
        mlflow_server.client.set_registered_model_alias(promoted, CHAMPION, version)
        until(lambda: serving(http, promoted) == version)

    for number in range(4):
        swap(number)
    memory, threads, files = worker.memory_info().rss, worker.num_threads(), worker.num_fds()
    for number in range(30):
        swap(number)
    assert worker.memory_info().rss - memory < 64e6  # 30 versions kept made 1 GB
    assert worker.num_threads() <= threads + 2
    assert worker.num_fds() <= files + 8


def watcher(home: Path, uri: str) -> tuple[Watcher, Models]:
    """A watcher that is stepped by hand, inside the running loop."""
    metrics = Metrics(CollectorRegistry())
    models = Models(default=None, metrics=metrics)
    settings, loop = Settings(home=home, tracking_uri=uri), asyncio.get_running_loop()
    stepped = Watcher(settings, models, metrics, loop)
    stepped._loader = Loader(settings, metrics, PROVIDER, loop)
    return stepped, models


@pytest.mark.parametrize("chosen", ["", "{name}"], ids=["all models", "this one alone"])
def test_a_worker_that_has_not_heard_of_a_model_asks_the_registry_before_it_says_no(
    start_service: Callable[..., Any], mlflow_server: Any, tiny: Any, tmp_path: Path, model_name: str, chosen: str
) -> None:
    name = f"{model_name}-{bool(chosen)}"
    # By itself it would look again after 16 s.
    settings = {"STRIDE_MODELS": chosen.format(name=name), "STRIDE_POLL_SECONDS": "16", "STRIDE_DEADLINE_SECONDS": "9"}
    service = start_service(MLFLOW_TRACKING_URI=mlflow_server.url, STRIDE_GRACE_SECONDS="10", **settings)
    service.wait("/livez")
    with httpx.Client(base_url=service.url, timeout=30) as client:
        until(lambda: client.get("/v1/models").json()["registry_error"] is None, timeout_s=30)
        assert client.post("/v1/models/nobody/predict", content=PNG).status_code in (404, 503)
        version = mlflow_server.publish(tiny(1).bundle(tmp_path / "first", name=name), name=name)
        mlflow_server.promote(name, version)
        answer = client.post(f"/v1/models/{name}/predict", content=PNG)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["name"] == name


def test_made_up_names_have_the_registry_asked_four_times_as_often_as_by_itself_and_no_more(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def look(watcher: Watcher) -> None:
        looks.append(time.monotonic())

    monkeypatch.setattr(Watcher, "_follow", look)

    async def main() -> float:
        metrics = Metrics(CollectorRegistry())
        settings = Settings(home=tmp_path, tracking_uri="", device="cpu", poll_s=0.4)
        watcher = Watcher(settings, Models(default=None, metrics=metrics), metrics, asyncio.get_running_loop())
        watcher.start()
        await watcher.restored.wait()
        started = time.monotonic()
        while time.monotonic() < started + 1:
            before = time.monotonic()
            await asyncio.gather(*(watcher.look_again() for _ in range(50)))
            assert looks[-1] >= before
        watcher.stop()
        return time.monotonic() - started

    elapsed = asyncio.run(main())
    assert 4 <= len(looks) <= elapsed / 0.1 + 3


def test_a_rollback_is_followed_though_the_store_cannot_be_written(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        known = {name: tiny(seed).bundle(tmp_path / name, name=name) for seed, name in ((1, "a"), (2, "b"))}
        watching, models = watcher(tmp_path / "home", "http://127.0.0.1:9")
        for at, (name, bundle) in enumerate(known.items()):
            watching._serve(Served(name, "1", bundle.digest, at), bundle, "champion")
        await asyncio.sleep(0)
        assert models.get().name == "b"
        (tmp_path / "home").write_text("where the store's directory would be")
        watching._consider(Wanted("a", "1", "runs:/0/bundle", known["a"].digest, 99), "champion")
        await asyncio.sleep(0)
        assert models.get().name == "a"
        await models.drain()

    asyncio.run(main())


def test_a_version_that_fails_in_an_unforeseen_way_is_quarantined_and_the_others_are_served(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry's client is replaced: what it can raise has no end, and this is not about the registry."""

    async def main() -> None:
        good = tiny(1).bundle(tmp_path / "good", name="good")
        watching, models = watcher(tmp_path / "home", "http://127.0.0.1:9")
        champions = [
            Registered("bad", Wanted("bad", "1", "runs:/0/bundle", "0" * 64, 1)),
            Registered("good", Wanted("good", "1", "runs:/1/bundle", good.digest, 1)),
        ]

        def download(wanted: Wanted, directory: Path) -> Path:
            if wanted.name == "bad":
                raise ValueError("nobody thought of this")
            return Path(shutil.copytree(good.path, directory / "bundle"))

        monkeypatch.setattr(watching._registry, "look", lambda *_: champions)
        monkeypatch.setattr(watching._registry, "download", download)
        watching._follow()
        await asyncio.sleep(0)
        entries = {entry["name"]: entry for entry in models.describe()["models"]}
        assert entries["good"]["serving"]["version"] == "1"
        assert "nobody thought of this" in entries["bad"]["quarantined"]["reason"]
        await models.drain()

    asyncio.run(main())


@pytest.mark.parametrize("uri", ["nonsense://x", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_registry_that_cannot_be_opened_is_away_and_says_why(tmp_path: Path, uri: str) -> None:
    async def main() -> None:
        watching, models = watcher(tmp_path / "home", uri)
        await asyncio.to_thread(watching._follow)
        await asyncio.sleep(0)
        assert uri in str(models.registry_error)
        watching.stop()

    asyncio.run(main())
