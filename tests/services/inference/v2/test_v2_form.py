"""services.inference.v2.form on a predictor in this process: versions, packed bodies, deadlines."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from contracts.errors import NotFound, Overloaded, TooLarge
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.errors import BodiesFull, InferenceFailed
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.predict import Predictor
from services.inference.provider import CPU, Provider
from services.inference.settings import Settings
from services.inference.store import Served
from services.inference.v2 import tensors
from services.inference.v2.form import Tensors
from services.inference.variants import Variant

PIXELS = list(range(64))
Work = Callable[[Predictor, Models], Coroutine[Any, Any, None]]


def body_of(**changes: Any) -> bytes:
    given = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": PIXELS} | changes
    return json.dumps({"inputs": [given]}).encode()


def run(tiny: Any, path: Path, work: Work, *, fails: bool = False, **options: Any) -> None:
    """Serve seed 1 as version 1, the champion, and seed 2 as version 2, the challenger, while `work` runs."""

    def refuse(_: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("it does not work")

    async def main() -> None:
        metrics = Metrics(CollectorRegistry())
        models = Models(default=None, metrics=metrics)
        for seed in (1, 2):
            known = tiny(seed).bundle(path / str(seed))
            engine = Engine(known, Provider(CPU, "a test"), threads=1, max_batch=4)
            infer = refuse if fails and seed == 2 else engine.infer
            batcher = Batcher(infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=64)
            variant: Variant = "champion" if seed == 1 else "challenger"
            models.swap(Model(Served("shapes", str(seed), known.digest, 1), engine, batcher, variant))
        predictor = Predictor(Settings(home=path, tracking_uri="", **options), models, metrics, decoders=1)
        try:
            await work(predictor, models)
            assert predictor.bodies.held == 0
            assert models.get().batcher.rows == 0
        finally:
            predictor.close()
            await models.drain()

    asyncio.run(main())


async def ask(predictor: Predictor, body: bytes, version: str | None = None, **headers: str) -> dict[str, Any]:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]

    pieces = iter([body])

    async def receive() -> dict[str, Any]:
        for piece in pieces:
            return {"type": "http.request", "body": piece, "more_body": False}
        await asyncio.Event().wait()  # the client stays
        return {}

    form = Tensors("shapes", version, sent)
    content, model = await predictor.predict({"query_string": b"", "headers": sent}, receive, form)
    answer: dict[str, Any] = json.loads(content)
    assert answer["model_version"] == model.version
    return answer


def test_a_version_is_answered_by_itself_be_it_champion_or_challenger(tiny: Any, tmp_path: Path) -> None:
    async def work(predictor: Predictor, models: Models) -> None:
        image = np.array(PIXELS, dtype=np.uint8).reshape(1, 8, 8, 1)
        for version, seed in ((None, 1), ("1", 1), ("2", 2)):
            found = (await ask(predictor, body_of(), version))["outputs"][0]["data"]
            np.testing.assert_allclose(found, tiny(seed).probabilities(image)[0], atol=1e-5)
        assert models.versions("shapes") == ["1", "2"]
        with pytest.raises(NotFound, match=r"no version '3' that is served; served are 1, 2\."):
            await ask(predictor, body_of(), "3")

    run(tiny, tmp_path, work)


def test_no_other_version_stands_in_for_one_that_was_asked_for(tiny: Any, tmp_path: Path) -> None:
    async def work(predictor: Predictor, models: Models) -> None:
        with pytest.raises(InferenceFailed):
            await ask(predictor, body_of(), "2")

    run(tiny, tmp_path, work, fails=True)


def test_what_a_packed_body_unpacks_to_takes_room_as_well(tiny: Any, tmp_path: Path) -> None:
    async def work(predictor: Predictor, models: Models) -> None:
        body = body_of() + b" " * 3000
        assert (await ask(predictor, gzip.compress(body), content_encoding="gzip"))["outputs"]
        predictor.bodies.held = 1500
        with pytest.raises(BodiesFull):
            await ask(predictor, gzip.compress(body), content_encoding="gzip")
        assert predictor.bodies.held == 1500
        predictor.bodies.held = 0

    run(tiny, tmp_path, work, max_bytes=4000, max_inflight_bytes=4500)


def test_the_deadline_holds_while_a_large_json_waits_to_be_parsed(tiny: Any, tmp_path: Path) -> None:
    async def work(predictor: Predictor, models: Models) -> None:
        free = threading.Event()
        predictor._decoder.pool.submit(free.wait, 10)  # the one thread is busy
        try:
            with pytest.raises(Overloaded, match="deadline"):
                await asyncio.wait_for(ask(predictor, body_of() + b" " * 20_000), 5)
        finally:
            free.set()

    run(tiny, tmp_path, work, deadline_s=0.05)


def test_a_request_whose_json_is_being_parsed_is_answered_though_its_version_is_replaced(
    tiny: Any, tmp_path: Path
) -> None:
    async def work(predictor: Predictor, models: Models) -> None:
        free = threading.Event()
        predictor._decoder.pool.submit(free.wait, 10)  # the one thread is busy
        asked = asyncio.ensure_future(ask(predictor, body_of() + b" " * 20_000))
        while not predictor._decoder.pool._work_queue.qsize():
            await asyncio.sleep(0.001)
        old = models.get()
        known = tiny(3).bundle(tmp_path / "3")
        engine = Engine(known, Provider(CPU, "a test"), threads=1, max_batch=4)
        batcher = Batcher(engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=64)
        models.swap(Model(Served("shapes", "3", known.digest, 1), engine, batcher))
        free.set()
        assert (await asyncio.wait_for(asked, 20))["model_version"] == "1"
        await asyncio.to_thread(old.batcher.thread.join, 5)
        assert not old.batcher.thread.is_alive()

    run(tiny, tmp_path, work, deadline_s=4)


def test_more_files_than_a_request_may_have_are_not_even_taken_apart(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight million empty ones fit into a body, and a short JSON is read on the event loop.
    monkeypatch.setattr(tensors, "_elements", lambda *_: pytest.fail("they were taken apart"))
    raw = bytes(4 * 65)
    given = {"name": "image", "datatype": "BYTES", "shape": [65], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [given]}).encode()

    async def work(predictor: Predictor, models: Models) -> None:
        with pytest.raises(TooLarge, match="65 images where 64 are allowed"):
            await ask(predictor, head + raw, inference_header_content_length=str(len(head)))

    run(tiny, tmp_path, work)
