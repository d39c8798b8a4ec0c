"""services.inference.plan and the engine on tuned bundles: the choice is served where it can be, else model.onnx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts import bundle as bundles
from contracts import cpu
from contracts.bundle import Bundle, Measured, Reference, Serving, Session
from contracts.errors import BundleError
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.model import Model
from services.inference.plan import choose
from services.inference.provider import CPU, CUDA, Provider
from services.inference.store import Served

Images = Callable[[int], NDArray[np.uint8]]
ON_CPU = Provider(CPU, "a test")


def tuned(tiny: Any, image: Images, path: Path, *, graph: bytes | None = None, **changes: Any) -> Bundle:
    """The tiny bundle of seed 1, in which the graph of seed 2 is what was chosen: the two can be told apart."""
    known = tiny(1).bundle(path / "plain")
    answer = tiny(2).probabilities(image(0)[np.newaxis])
    content: dict[str, Any] = {
        "file": "model-int8.onnx",
        "precision": "int8",
        "provider": CPU,
        "golden": tuple(tuple(map(float, row)) for row in answer),
        "tolerance": 0.001,
        "reason": "it is faster",
        "gain": 0.5,
        "machine": "a test",
    }
    serving = Serving.model_validate({**content, **changes})
    files = {name: known.read(name) for name in known.manifest.files}
    files["model-int8.onnx"] = tiny(2).graph().SerializeToString() if graph is None else graph
    return bundles.write(path / "tuned", known.manifest.model_copy(update={"serving": serving}), files)


def load(bundle: Bundle, *, threads: int = 3, all_threads: bool = False) -> Engine:
    return Engine(bundle, ON_CPU, threads=threads, max_batch=4, all_threads=all_threads)


def test_the_tuned_graph_answers(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    engine = load(tuned(tiny, make_image, tmp_path))
    batch = np.stack([make_image(k) for k in range(3)])
    assert (engine.precision, engine.plan.reason) == ("int8", "it is faster")
    np.testing.assert_allclose(engine.infer(batch), tiny(2).probabilities(batch), atol=1e-6)


def falls_back(engine: Engine, tiny: Any, make_image: Images) -> str:
    """That model.onnx answers; the reason."""
    batch = np.stack([make_image(k) for k in range(3)])
    np.testing.assert_allclose(engine.infer(batch), tiny(1).probabilities(batch), atol=1e-6)
    assert engine.precision == "fp32"
    assert engine.plan.session == Session()
    return engine.plan.reason


def test_a_bundle_that_was_not_tuned_says_so(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    engine = load(tiny(1).bundle(tmp_path / "b"))
    assert falls_back(engine, tiny, make_image) == "it has not been tuned"


def test_a_graph_tuned_for_another_provider_is_not_served(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    engine = load(tuned(tiny, make_image, tmp_path, provider=CUDA, precision="fp16"))
    assert "it was tuned for CUDAExecutionProvider" in falls_back(engine, tiny, make_image)


def test_a_processor_without_vnni_serves_fp32(
    tiny: Any, make_image: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "lacks_int8", lambda: "this test has no VNNI instructions")
    engine = load(tuned(tiny, make_image, tmp_path, exact_int8=True))
    assert "this test has no VNNI" in falls_back(engine, tiny, make_image)


def test_weights_of_7_bits_are_served_by_every_processor(
    tiny: Any, make_image: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "lacks_int8", lambda: "this test has no VNNI instructions")
    assert load(tuned(tiny, make_image, tmp_path, exact_int8=False)).precision == "int8"


def test_a_tuned_graph_that_cannot_be_loaded_is_replaced_by_fp32_and_logged(
    tiny: Any, make_image: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(tuned(tiny, make_image, tmp_path, graph=b"no graph"))
    assert "is not an ONNX file" in falls_back(engine, tiny, make_image)
    assert [record.getMessage() for record in caplog.records] == ["tuned_graph_refused"]


def test_a_tuned_graph_that_answers_otherwise_than_when_it_was_tuned_is_replaced_by_fp32(
    tiny: Any, make_image: Images, tmp_path: Path
) -> None:
    wrong = tiny(3).probabilities(make_image(0)[np.newaxis])
    engine = load(tuned(tiny, make_image, tmp_path, golden=tuple(tuple(map(float, row)) for row in wrong)))
    assert "with a difference of" in falls_back(engine, tiny, make_image)


def test_a_bundle_whose_fp32_graph_is_wrong_too_is_refused(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    known = tuned(tiny, make_image, tmp_path, graph=b"no graph")
    files = {name: known.read(name) for name in known.manifest.files} | {"model.onnx": b"no graph either"}
    broken = bundles.write(tmp_path / "broken", known.manifest, files)
    with pytest.raises(BundleError, match=r"model\.onnx is not an ONNX file"):
        load(broken)


def test_threads_are_capped_by_the_tuning_but_not_against_what_was_set(
    tiny: Any, make_image: Images, tmp_path: Path
) -> None:
    known = tuned(tiny, make_image, tmp_path, session=Session(threads=2))
    assert [load(known, threads=n).threads for n in (1, 2, 3)] == [1, 2, 2]
    assert load(known, threads=3, all_threads=True).threads == 3


def test_what_is_told_of_a_model_is_of_the_graph_that_answers(
    tiny: Any, make_image: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tuned(tiny, make_image, tmp_path, exact_int8=True)
    plain = Measured(metrics={"test/accuracy": 0.95}, reference=counts(50))
    manifest = known.manifest.model_copy(update={"plain": plain, "reference": counts(40)})
    both = bundles.write(tmp_path / "both", manifest, {name: known.read(name) for name in known.manifest.files})

    def told(bundle: Bundle) -> tuple[float | None, Reference | None]:
        async def describe() -> tuple[float | None, Reference | None]:
            engine = load(bundle)
            batcher = Batcher(engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=8)
            model = Model(Served("shapes", "1", bundle.digest, 1), engine, batcher)
            batcher.close()
            return model.describe()["metrics"].get("test/accuracy"), engine.measured.reference

        return asyncio.run(describe())

    assert told(both) == (0.9, counts(40))
    monkeypatch.setattr(cpu, "lacks_int8", lambda: "this test has no VNNI instructions")
    assert told(both) == (0.95, counts(50))
    assert told(known) == (None, None)  # rather than another graph's


def counts(first: int) -> Reference:
    """Of a hundred test images."""
    return Reference(classes=(first, 100 - first, 0), edges=(0.5,), confidence=(50, 50))


def test_options_of_the_session_are_taken_from_the_bundle(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    engine = load(tuned(tiny, make_image, tmp_path, session=Session(optimization="extended")))
    level = engine._session.get_session_options().graph_optimization_level
    assert "ORT_ENABLE_EXTENDED" in str(level)
    assert engine.precision == "int8"


def test_the_plan_of_a_manifest_names_its_file(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    known = tuned(tiny, make_image, tmp_path)
    assert choose(known.manifest, ON_CPU).file == "model-int8.onnx"
    assert choose(known.manifest, Provider(CUDA, "a GPU is there")).file == "model.onnx"
