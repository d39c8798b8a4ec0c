"""services.inference.loader: what a load leaves to the serving, and which threads it may slow down."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.inference import loader, provider
from services.inference.loader import Loader, step_back
from services.inference.metrics import Metrics
from services.inference.provider import CPU, CUDA, Provider
from services.inference.settings import Settings
from services.inference.store import Served


def made(monkeypatch: pytest.MonkeyPatch, cores: int, name: Any = CPU, loop: Any = None, **settings: Any) -> Loader:
    monkeypatch.setattr(provider, "threads", lambda _: cores)
    read = Settings(home=Path("/nowhere"), tracking_uri="", **settings)
    return Loader(read, Metrics(CollectorRegistry()), Provider(name, "a test"), loop)


def test_it_steps_back_only_where_no_thread_has_a_core_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(monkeypatch, 1).alone
    assert not made(monkeypatch, 2).alone
    # Threads that onnxruntime starts take over the priority, and keep it when they serve.
    assert not made(monkeypatch, 1, threads=2).alone
    assert not made(monkeypatch, 1, CUDA).alone


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a priority of its own")
def test_who_steps_back_takes_no_other_thread_along() -> None:
    found: list[int] = []

    def work() -> None:
        step_back()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [max(before, loader._NICE)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_what_serves_has_the_priority_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, tiny: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        loading = made(monkeypatch, 1, loop=asyncio.get_running_loop())
        known = tiny(1).bundle(tmp_path / "b")

        def load() -> Any:
            step_back()
            return loading.load(known)

        engine = await asyncio.to_thread(load)
        model = loading.model(Served("shapes", "1", known.digest, 1), engine, "champion")
        assert model.batcher.thread.native_id is not None
        of_batcher = os.getpriority(os.PRIO_PROCESS, model.batcher.thread.native_id)
        assert of_batcher == os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        model.batcher.close()

    asyncio.run(main())
