"""services.inference.lifespan's drain, amid whatever the loop is doing; its whole way is in test_service."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from services.inference import lifespan, settings
from services.inference.app import Application
from services.inference.bodies import Bodies
from services.inference.connection import Connection
from services.inference.metrics import Metrics
from services.inference.refusals import Refusals


@pytest.fixture
def ended() -> Iterator[list[int]]:
    """What the server's own handler was told."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    refusals = Connection.refusals
    yield told
    Connection.refusals = refusals
    signal.signal(signal.SIGTERM, before)


def test_sigterm_takes_nothing_away_from_what_is_under_way(ended: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifespan, "_LAME_DUCK_S", 0.02)

    async def main() -> None:
        read = settings.read({})
        app = Application()
        app.predictor = SimpleNamespace(bodies=Bodies(read))  # type: ignore[assignment] # all that the drain asks for
        Connection.refusals = refusals = Refusals(Metrics(CollectorRegistry()))
        lifespan._drain_at_sigterm(app, read)

        os.kill(os.getpid(), signal.SIGTERM)  # its handler runs at once, between any two steps of a refusal

        seen = [Connection.refusals]
        await asyncio.sleep(0)
        seen.append(Connection.refusals)
        assert app.draining
        assert seen == [refusals, None]
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert ended == [signal.SIGTERM]
