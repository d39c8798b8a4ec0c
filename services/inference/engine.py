"""The engine: one onnxruntime session over one verified bundle. uint8 images in, probabilities out.

It loads the graph that `stride tune` chose, and where that fails for whatever reason, model.onnx: a tuned graph is a
gain where it runs, and never a reason not to serve.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts import images
from contracts.bundle import INPUT, OUTPUT, Bundle, Measured
from contracts.errors import BundleError, DeviceError, ImageError
from services.inference import graph, logs, plan
from services.inference.plan import Plan
from services.inference.provider import CUDA, Provider

CPU_TOLERANCE: Final = 1e-4
"""Least tolerance of the golden samples on a CPU: other instruction sets sum in another order."""
CUDA_TOLERANCE: Final = 5e-3
"""Least tolerance on CUDA: TF32, on by default, keeps 10 bits of a factor's mantissa (about 1e-3 relative)."""


class Engine:
    """A loaded model. `infer` is to be called from one thread at a time.

    Raises (from the constructor):
        BundleError: the graph is refused, cannot be loaded, or answers its golden images wrongly.
        DeviceError: CUDA was asked for and the session does not run on it.
    """

    def __init__(
        self, bundle: Bundle, provider: Provider, *, threads: int, max_batch: int, all_threads: bool = False
    ) -> None:
        """Load, warm and prove a bundle.

        Args:
            bundle: verified.
            provider: what the session has to run on.
            threads: onnxruntime's threads; fewer where the bundle was tuned to fewer.
            max_batch: most images of one run of the graph.
            all_threads: take just as many as `threads` says, whatever the bundle was tuned to.
        """
        self.bundle = bundle
        self.provider = provider
        self.max_batch = max_batch
        self.load_s = 0.0
        self.row_s = math.inf
        """Processor seconds of this thread for one image alone, the least of the golden ones; of other threads or a GPU
        it knows nothing."""
        self._names = [OUTPUT]
        self._threads = threads
        self._all_threads = all_threads
        started = time.perf_counter()
        self.plan = plan.choose(bundle.manifest, provider)
        try:
            self._load(self.plan)
        except Exception as error:
            if self.plan == (fallback := plan.plain(bundle.manifest, self.plan.reason)):
                raise
            reason = f"the tuned graph was refused: {_line(error)}"
            logs.warning("tuned_graph_refused", model=bundle.manifest.name, file=self.plan.file, reason=reason)
            self.plan = replace(fallback, reason=reason)
            self._load(self.plan)
        self.load_s = time.perf_counter() - started

    @property
    def precision(self) -> str:
        """Of the graph that answers: fp32, int8 or fp16."""
        return self.plan.precision

    @property
    def measured(self) -> Measured:
        """How the graph that answers did on the test images."""
        return self.bundle.manifest.measured(self.plan.file)

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities of a batch.

        Args:
            batch: uint8, (n, height, width, channels); n of any size, run in steps of `max_batch`.

        Returns:
            float32, (n, classes), each row sums to 1.
        """
        if len(batch) <= self.max_batch:
            return self._run(batch)
        steps = range(0, len(batch), self.max_batch)
        return np.concatenate([self._run(batch[at : at + self.max_batch]) for at in steps])

    def _run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = len(batch)
        bucket = next((size for size in self._buckets if size >= rows), rows)
        if bucket != rows:
            batch = np.concatenate([batch, np.zeros((bucket - rows, *batch.shape[1:]), dtype=np.uint8)])
        output: NDArray[np.float32] = self._session.run(self._names, {INPUT: batch})[0]
        return output[:rows]

    def _load(self, chosen: Plan) -> None:
        model = self.bundle.read(chosen.file)
        graph.check(model, self.bundle, file=chosen.file)
        least = None if self._all_threads else chosen.session.threads
        self.threads = min(self._threads, least or self._threads)
        self._session: Any = _session(model, self.bundle, self.provider, self.threads, chosen)
        # A new batch shape costs on CUDA (kernel choice, memory), so the batches come in few, warmed sizes.
        self._buckets = _buckets(self.max_batch, chosen.session.buckets) if self.provider.name == CUDA else []
        self._warm()
        self.golden_difference = self._golden(chosen)

    def _warm(self) -> None:
        # Largest first: the memory arena then grows once and the smaller shapes fit into it.
        for rows in sorted({1, self.max_batch, *self._buckets}, reverse=True):
            blank = np.zeros((rows, *self.bundle.manifest.input.shape), dtype=np.uint8)
            try:
                output = self._session.run(self._names, {INPUT: blank})[0]
            except Exception as error:  # onnxruntime's errors share no other base
                raise BundleError(f"{self._who()} fails on a batch of {rows}: {_line(error)}.") from error
            wanted = (rows, len(self.bundle.manifest.labels))
            if output.shape != wanted:
                raise BundleError(f"{self._who()} answers shape {output.shape} where {wanted} is expected.")

    def _golden(self, chosen: Plan) -> float:
        """Answer the golden images of the bundle; the largest difference to the answers that this graph gave before."""
        manifest = self.bundle.manifest
        if not manifest.golden:
            raise BundleError(f"{self._who()} has no golden image to be tested with; export it again.")
        least = CUDA_TOLERANCE if self.provider.name == CUDA else CPU_TOLERANCE
        tolerance = max(least, chosen.tolerance)
        largest = 0.0
        self.row_s = math.inf  # of this graph, not of one that was refused
        for golden, expected in zip(manifest.golden, chosen.golden, strict=True):
            try:
                image = images.decode(self.bundle.read(golden.file), manifest.input)
            except ImageError as error:
                raise BundleError(f"{self._who()}: {golden.file} cannot be decoded; export it again.") from error
            started = time.thread_time()
            answer = self.infer(image[np.newaxis])[0]
            self.row_s = min(self.row_s, time.thread_time() - started)
            difference = float(np.abs(answer - np.asarray(expected, dtype=np.float32)).max())
            if not difference <= tolerance:  # written so that nan fails too
                allowed = f"{tolerance:g} is allowed on {self.provider.name}"
                raise BundleError(
                    f"{self._who()} answers {golden.file} with a difference of {difference:.3g}; {allowed}."
                )
            largest = max(largest, difference)
        return largest

    def _who(self) -> str:
        return f"bundle of {self.bundle.manifest.name!r}"


def _session(model: bytes, bundle: Bundle, provider: Provider, threads: int, chosen: Plan) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()  # type: ignore[attr-defined]
    level = "ORT_ENABLE_ALL" if chosen.session.optimization == "all" else "ORT_ENABLE_EXTENDED"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)  # type: ignore[attr-defined]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads win microseconds on an idle machine and starve their neighbours on a shared one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [provider.name]
    if provider.name == CUDA:
        ort.preload_dlls(directory="")
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # The default search tries every algorithm for every new shape; the heuristic is enough and starts in time.
        search = chosen.session.convolution_search
        providers = [(CUDA, {"cudnn_conv_algo_search": search, "arena_extend_strategy": "kSameAsRequested"})]
    try:
        session = ort.InferenceSession(model, options, providers)  # type: ignore[attr-defined]
    except Exception as error:
        name = bundle.manifest.name
        if provider.name == CUDA and "CUDA" in str(error):
            raise DeviceError(f"model {name!r} cannot run on CUDA: {_line(error)}; check the driver.") from error
        raise BundleError(
            f"bundle of {name!r}: {chosen.file} cannot be loaded: {_line(error)}; export it again."
        ) from error
    if (found := session.get_providers()[0]) != provider.name:
        wanted = f"{provider.name} was chosen ({provider.reason})"
        raise DeviceError(f"model {bundle.manifest.name!r} runs on {found}, but {wanted}; check the CUDA libraries.")
    session.disable_fallback()
    return session


def _buckets(max_batch: int, tuned: tuple[int, ...]) -> list[int]:
    sizes = tuned or [2**k for k in range(max_batch.bit_length())]
    return [*(size for size in sizes if size < max_batch), max_batch]


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
