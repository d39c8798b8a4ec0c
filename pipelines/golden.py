"""The golden images of a bundle, answered with onnxruntime as they were at export."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contracts import cpu, images
from contracts.bundle import MODEL, Bundle
from contracts.errors import BundleError, ExportError
from pipelines import graph

if TYPE_CHECKING:
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession


def answer_golden(bundle: Bundle, model: bytes | None = None) -> None:
    """Answer every golden image with onnxruntime, from `model`, or from the bundle's graphs as a server would.

    Raises:
        BundleError: there is no golden image, the graph cannot be run, or an answer differs from the one at export.
    """
    manifest = bundle.manifest
    if not manifest.golden:
        raise BundleError(f"bundle {bundle.path}: it has no golden image to be verified with; export it again.")
    pixels = np.stack([images.decode(bundle.read(golden.file), manifest.input) for golden in manifest.golden])
    expected = np.array([golden.probabilities for golden in manifest.golden])
    _compare(bundle, graph.open_session, model or bundle.read(MODEL), pixels, expected, manifest.tolerance)
    serving = manifest.serving
    # A tuned graph is proved where this machine can run it; a server that cannot takes model.onnx.
    if model is None and serving is not None and serving.file != MODEL and serving.provider == "CPUExecutionProvider":
        if serving.exact_int8 and cpu.lacks_int8() is not None:
            return
        open_tuned = partial(graph.open_session, settings=serving.session)
        _compare(bundle, open_tuned, bundle.read(serving.file), pixels, np.array(serving.golden), serving.tolerance)


def _compare(
    bundle: Bundle,
    open_session: Callable[[bytes], InferenceSession],
    model: bytes,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float64],
    tolerance: float,
) -> None:
    try:
        answers = graph.predict(open_session(model), pixels, batch_size=1)
    except ExportError as error:
        raise BundleError(f"bundle {bundle.path}: its graph cannot be run: {error.message}") from error
    if answers.shape != expected.shape:
        shapes = f"{answers.shape}, expected {expected.shape}"
        raise BundleError(f"bundle {bundle.path}: its golden images gave {shapes}; export it again.")
    # NaN fails too: a comparison with it is never true.
    if not (difference := float(np.abs(answers - expected).max())) <= tolerance:
        detail = f"off by {difference:.3g} (tolerance {tolerance:.3g})"
        raise BundleError(f"bundle {bundle.path}: its golden images are answered {detail}; export it again.")
