"""services.inference.shadow: what the challenger would have answered, counted and never waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts.bundle import Bundle
from contracts.registry import Rollout
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.provider import CPU, Provider
from services.inference.store import Served
from services.inference.variants import Variant

Infer = Callable[[Any], Any]


class Shadowed:
    """A champion (seed 1) and its shadow (seed 2), inside the running loop."""

    def __init__(self, tiny: Any, path: Path, *, infer: Infer | None = None) -> None:
        self.registry = CollectorRegistry()
        self.models = Models(default=None, metrics=Metrics(self.registry))
        self.champion = self._model(tiny(1).bundle(path / "1"), "champion", None)
        self.challenger = self._model(tiny(2).bundle(path / "2"), "challenger", infer)
        self.models.swap(self.champion)
        self.models.swap(self.challenger)
        self.models.follow("shapes", Rollout(shadow=True), None)

    def _model(self, known: Bundle, variant: Variant, infer: Infer | None) -> Model:
        engine = Engine(known, Provider(CPU, "a test"), threads=1, max_batch=4)
        batcher = Batcher(infer or engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=64)
        return Model(Served("shapes", variant, known.digest, 1), engine, batcher, variant)

    async def answered(self, images: Any) -> Any:
        probabilities = self.champion.engine.infer(images)
        self.models.answered(self.champion, images, probabilities)
        return probabilities

    async def idle(self) -> None:
        while self.challenger.batcher.rows:
            await asyncio.sleep(0.001)

    def counted(self, name: str) -> float:
        labels = {"model": "shapes", "challenger": "challenger"}
        return self.registry.get_sample_value(f"stride_shadow_{name}_total", labels) or 0.0

    def dropped(self, reason: str) -> float:
        labels = {"model": "shapes", "reason": reason}
        return self.registry.get_sample_value("stride_shadow_dropped_total", labels) or 0.0


def test_what_two_nets_answer_differently_is_counted(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def main() -> None:
        shadowed = Shadowed(tiny, tmp_path)
        disagreements, difference = 0, 0.0
        for number in range(0, 40, 2):
            images = np.stack([make_image(number), make_image(number + 1)])
            ours = await shadowed.answered(images)
            await shadowed.idle()
            theirs = tiny(2).probabilities(images)
            disagreements += int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
            difference += float(np.abs(ours - theirs).mean(axis=1).sum())
        assert 0 < disagreements < 40  # else this test would show nothing
        assert shadowed.counted("images") == 40
        assert shadowed.counted("disagreements") == disagreements
        assert shadowed.counted("difference") == pytest.approx(difference, abs=1e-3)
        await shadowed.models.drain()

    asyncio.run(main())


def test_a_busy_shadow_holds_nobody_up_and_what_it_misses_is_counted(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        free = threading.Event()

        def slow(images: Any) -> Any:
            free.wait(10)
            return tiny(2).probabilities(images)

        shadowed = Shadowed(tiny, tmp_path, infer=slow)
        for number in range(10):
            await shadowed.answered(make_image(number)[np.newaxis])
        assert shadowed.challenger.batcher.rows == 1
        assert shadowed.dropped("busy") == 9
        shadowed.models.dismiss("shapes")  # meanwhile
        free.set()
        await shadowed.idle()
        assert shadowed.counted("images") == 1
        await asyncio.to_thread(shadowed.challenger.batcher.thread.join, 5)
        assert not shadowed.challenger.batcher.thread.is_alive()
        await shadowed.models.drain()

    asyncio.run(main())


def test_nothing_is_compared_while_more_than_a_batch_waits_for_the_champion(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        shadowed = Shadowed(tiny, tmp_path)
        shadowed.champion.batcher.admit(5)
        await shadowed.answered(make_image(1)[np.newaxis])
        assert (shadowed.dropped("loaded"), shadowed.challenger.batcher.rows) == (1, 0)
        shadowed.champion.batcher.release(5)
        await shadowed.models.drain()

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["raises", "not a number"])
def test_a_shadow_that_fails_is_counted_and_spoils_no_sum(
    tiny: Any, make_image: Any, tmp_path: Path, fault: str
) -> None:
    async def main() -> None:
        def fail(images: Any) -> Any:
            if fault == "raises":
                raise ValueError("this challenger cannot compute")
            return np.full((len(images), 3), np.nan, dtype=np.float32)

        shadowed = Shadowed(tiny, tmp_path, infer=fail)
        await shadowed.answered(make_image(1)[np.newaxis])
        await shadowed.idle()
        assert shadowed.dropped("failed") == 1
        assert shadowed.counted("difference") == 0
        await shadowed.models.drain()

    asyncio.run(main())


def test_a_champion_that_gives_no_number_spoils_no_sum(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def main() -> None:
        shadowed = Shadowed(tiny, tmp_path)
        nothing = np.full((1, 3), np.nan, dtype=np.float32)
        shadowed.models.answered(shadowed.champion, make_image(1)[np.newaxis], nothing)
        await shadowed.idle()
        assert shadowed.dropped("failed") == 1
        assert shadowed.counted("difference") == 0
        await shadowed.models.drain()

    asyncio.run(main())


def test_what_the_former_champion_still_answers_is_not_compared(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def main() -> None:
        shadowed = Shadowed(tiny, tmp_path)
        former = shadowed.champion
        former.batcher.admit(1)
        shadowed.models.swap(shadowed._model(tiny(3).bundle(tmp_path / "3"), "champion", None))
        images = make_image(1)[np.newaxis]
        former.batcher.release(1)
        shadowed.models.answered(former, images, former.engine.infer(images))
        assert shadowed.challenger.batcher.rows == 0
        await shadowed.models.drain()

    asyncio.run(main())
