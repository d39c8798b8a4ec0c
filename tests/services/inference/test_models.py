"""services.inference.models: champion and challenger side by side, in one event loop."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from contracts import bundle as bundles
from contracts.bundle import Bundle
from contracts.errors import NoModel, NotFound
from contracts.images import encode_png
from contracts.registry import Rollout
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.errors import InferenceFailed
from services.inference.metrics import Metrics
from services.inference.model import Model, Quarantined
from services.inference.models import Models
from services.inference.predict import Predictor
from services.inference.provider import CPU, Provider
from services.inference.settings import Settings
from services.inference.store import Served
from services.inference.variants import Choice, Variant

ANY = Choice(None, 0.0)
Infer = Callable[[Any], Any]


def model(known: Bundle, variant: Variant = "champion", *, infer: Infer | None = None) -> Model:
    """A loaded version, inside the running loop: 1 for the champion and 2 for the challenger."""
    engine = Engine(known, Provider(CPU, "a test"), threads=1, max_batch=4)
    batcher = Batcher(infer or engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=8)
    version = "1" if variant == "champion" else "2"
    return Model(Served("shapes", version, known.digest, 1), engine, batcher, variant)


def pair(tiny: Any, path: Path, rollout: Rollout, *, infer: Infer | None = None) -> tuple[Models, CollectorRegistry]:
    registry = CollectorRegistry()
    models = Models(default=None, metrics=Metrics(registry))
    models.swap(model(tiny(1).bundle(path / "1")))
    models.swap(model(tiny(2).bundle(path / "2"), "challenger", infer=infer))
    models.follow("shapes", rollout, None)
    return models, registry


async def ask(models: Models, path: Path, image: NDArray[np.uint8], **headers: str) -> Model:
    """Who answers a request, over the way that every request takes."""
    predictor = Predictor(Settings(home=path, tracking_uri=""), models, Metrics(CollectorRegistry()), decoders=1)
    scope = {
        "query_string": b"",
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": encode_png(image), "more_body": False}

    try:
        return (await predictor.predict(scope, receive))[1]
    finally:
        predictor.close()


def not_a_number(images: Any) -> Any:
    return np.full((len(images), 3), np.nan, dtype=np.float32)


def broken(images: Any) -> Any:
    raise ValueError("this challenger cannot compute")


@pytest.mark.parametrize("infer", [broken, not_a_number])
def test_the_champion_answers_where_a_challenger_fails_that_the_client_did_not_ask_for(
    tiny: Any, make_image: Any, tmp_path: Path, infer: Infer
) -> None:
    async def main() -> None:
        models, registry = pair(tiny, tmp_path, Rollout(100), infer=infer)
        assert models.get(None, ANY).variant == "challenger"
        answered = await ask(models, tmp_path, make_image(1))
        assert (answered.version, answered.variant) == ("1", "champion")
        assert registry.get_sample_value("stride_canary_stand_ins_total", {"model": "shapes"}) == 1
        with pytest.raises(InferenceFailed):
            await ask(models, tmp_path, make_image(1), x_stride_variant="challenger")
        await models.drain()

    asyncio.run(main())


def test_the_champion_answers_where_the_challengers_queue_is_full(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def main() -> None:
        models, _ = pair(tiny, tmp_path, Rollout(100))
        challenger = models.get(None, ANY)
        challenger.batcher.admit(8)
        assert (await ask(models, tmp_path, make_image(1))).variant == "champion"
        challenger.batcher.release(8)
        assert (await ask(models, tmp_path, make_image(1))).variant == "challenger"
        await models.drain()

    asyncio.run(main())


def test_a_challenger_of_other_labels_answers_only_who_asks_for_it(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        models, _ = pair(tiny, tmp_path, Rollout(100, shadow=True))
        known = tiny(2).bundle(tmp_path / "known")
        other = known.manifest.model_copy(update={"labels": ("a", "b", "c")})
        files = {name: known.read(name) for name in other.files}
        models.swap(model(bundles.write(tmp_path / "other", other, files), "challenger"))
        assert models.get(None, ANY).variant == "champion"
        assert models.get(None, Choice("challenger", 0.0)).labels == ("a", "b", "c")
        (entry,) = models.describe()["models"]
        assert (entry["challenger"]["percent"], entry["challenger"]["shadow"]) == (0, False)
        assert "its labels are not the champion's" in entry["challenger"]["note"]
        await models.drain()

    asyncio.run(main())


def test_a_dismissed_challenger_answers_what_it_has_begun_and_is_freed(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        models, _ = pair(tiny, tmp_path, Rollout(100))
        challenger = models.get(None, ANY)
        challenger.batcher.admit(1)
        models.dismiss("shapes")
        assert models.get(None, ANY).variant == "champion"
        future = challenger.batcher.submit(make_image(1)[np.newaxis], expires=float("inf"))
        np.testing.assert_allclose(await future, tiny(2).probabilities(make_image(1)[np.newaxis]), atol=1e-5)
        challenger.batcher.release(1)
        thread, engine = challenger.batcher.thread, weakref.ref(challenger.engine)
        await asyncio.to_thread(thread.join, 5)
        del challenger
        gc.collect()
        assert not thread.is_alive()
        assert engine() is None
        (entry,) = models.describe()["models"]
        assert entry["challenger"] is None
        await models.drain()

    asyncio.run(main())


def test_a_refused_challenger_is_shown_beside_the_champion_that_answers(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        metrics = Metrics(registry := CollectorRegistry())
        models = Models(default=None, metrics=metrics)
        models.swap(model(tiny(1).bundle(tmp_path / "1")))
        models.quarantine(Quarantined("shapes", "2", "it is broken.", 1.0, "challenger", "verify"))
        (entry,) = models.describe()["models"]
        assert (entry["quarantined"], entry["serving"]["version"]) == (None, "1")
        assert entry["challenger"]["quarantined"] == {
            "version": "2", "reason": "it is broken.", "step": "verify", "since": 1.0
        }  # fmt: skip
        labels = {"model": "shapes@challenger"}
        assert registry.get_sample_value("stride_model_quarantined", labels) == 1
        assert registry.get_sample_value("stride_model_quarantines_total", {**labels, "step": "verify"}) == 1
        models.dismiss("shapes")
        assert registry.get_sample_value("stride_model_quarantined", labels) == 0
        await models.drain()

    asyncio.run(main())


def test_a_model_that_is_asked_for_and_missing_says_why_and_any_other_is_unknown(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        models = Models(default=None, metrics=Metrics(CollectorRegistry()))
        models.swap(model(tiny(1).bundle(tmp_path / "1")))
        models.follow("pinned", Rollout(), "'pinned' has no version 7; name one that the registry holds")
        with pytest.raises(NoModel, match="model 'pinned' is not served: 'pinned' has no version 7"):
            models.get("pinned")
        with pytest.raises(NotFound):
            models.get("unknown")
        entries = {entry["name"]: entry for entry in models.describe()["models"]}
        assert "no version 7" in entries["pinned"]["missing"]
        await models.drain()

    asyncio.run(main())


def test_a_champion_of_other_labels_that_came_meanwhile_does_not_stand_in(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        models, registry = pair(tiny, tmp_path, Rollout(100))
        failed = models.get(None, ANY)
        known = tiny(3).bundle(tmp_path / "known")
        other = known.manifest.model_copy(update={"labels": ("a", "b", "c")})
        files = {name: known.read(name) for name in other.files}
        models.swap(model(bundles.write(tmp_path / "other", other, files)))
        assert models.stand_in(failed, ANY) is None
        assert registry.get_sample_value("stride_canary_stand_ins_total", {"model": "shapes"}) is None
        await models.drain()

    asyncio.run(main())
