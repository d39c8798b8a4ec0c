"""services.inference.predict: deadlines, clients that leave, the end of the service. What is sent: see hostile/."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from contracts.bundle import Bundle
from contracts.errors import Overloaded, SlowBody
from services.inference.batcher import Batcher
from services.inference.bodies import ClientGone
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.predict import Predictor
from services.inference.provider import CPU, Provider
from services.inference.settings import Settings
from services.inference.store import Served


def photo() -> bytes:
    """A JPEG: it is decoded in the pool."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((24, 16, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


class Never:
    """A client whose body does not come."""

    async def __call__(self) -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {}


def predictor(bundle: Bundle, **options: Any) -> tuple[Predictor, Models]:
    """A predictor that serves `bundle`, inside the running loop."""
    metrics = Metrics(CollectorRegistry())
    models = Models(default=None, metrics=metrics)
    engine = Engine(bundle, Provider(CPU, "a test"), threads=1, max_batch=4)
    batcher = Batcher(engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=64)
    models.swap(Model(Served("shapes", "1", bundle.digest, 1), engine, batcher))
    settings = Settings(home=bundle.path, tracking_uri="", **options)
    return Predictor(settings, models, metrics, decoders=1), models


SCOPE: dict[str, Any] = {"query_string": b"", "headers": []}


def test_a_body_that_begins_while_the_service_ends_is_cut_as_well(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"))
        begun = asyncio.ensure_future(served.predict(SCOPE, Never(), None))
        await asyncio.sleep(0)
        served.bodies.cut(0.05)
        for request in (begun, served.predict(SCOPE, Never(), None)):
            with pytest.raises(SlowBody):
                await asyncio.wait_for(request, 5)
        await models.drain()

    asyncio.run(main())


def test_the_end_of_the_service_gives_no_body_more_time_than_it_had(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"), body_s=0.05)
        begun = asyncio.ensure_future(served.predict(SCOPE, Never(), None))
        await asyncio.sleep(0)
        served.bodies.cut(60)
        with pytest.raises(SlowBody):
            await asyncio.wait_for(begun, 5)
        await models.drain()

    asyncio.run(main())


def test_the_deadline_holds_while_a_request_waits_for_its_decoding(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"), deadline_s=0.05)
        free = threading.Event()
        served._decoder.pool.submit(free.wait, 10)  # the one decoder is busy

        sent = [{"type": "http.request", "body": photo(), "more_body": False}]

        async def body() -> dict[str, Any]:
            return sent.pop() if sent else await Never()()

        try:
            with pytest.raises(Overloaded, match="deadline"):
                await asyncio.wait_for(served.predict(SCOPE, body, None), 5)
            assert served.bodies.held == 0
            assert models.get().batcher.rows == 0
        finally:
            free.set()
            served.close()
            await models.drain()

    asyncio.run(main())


def test_a_client_that_leaves_is_not_decoded_for_and_gives_its_places_back(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"))
        free = threading.Event()
        served._decoder.pool.submit(free.wait, 10)  # the one decoder is busy
        sent: list[dict[str, Any]] = [
            {"type": "http.disconnect"},
            {"type": "http.request", "body": photo(), "more_body": False},
        ]

        async def body() -> dict[str, Any]:
            return sent.pop()

        try:
            with pytest.raises(ClientGone):
                await asyncio.wait_for(served.predict(SCOPE, body), 5)
            assert (served.bodies.held, served._decoder.waiting, models.get().batcher.rows) == (0, 0, 0)
        finally:
            free.set()
            served.close()
            await models.drain()

    asyncio.run(main())


def test_who_would_wait_too_long_for_a_decoder_is_refused_at_once(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"), deadline_s=1.0)
        free = threading.Event()
        decoder, spec = served._decoder, models.get().spec
        decoder.pool.submit(free.wait, 10)
        decoder._file_s = 0.5
        first = decoder.later([photo(), photo()], spec, within_s=1.0)  # nobody is before it
        with pytest.raises(Overloaded, match="2 images wait to be decoded"):
            decoder.later([photo()], spec, within_s=1.0)
        free.set()
        assert (await first).shape == (2, 8, 8, 1)
        await asyncio.sleep(0)
        assert decoder.waiting == 0
        served.close()
        await models.drain()

    asyncio.run(main())
