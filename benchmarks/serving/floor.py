"""python -m benchmarks.serving.floor IMAGES MODEL [MODEL…]

Bare onnxruntime, the floor under every server: PNG -> Pillow -> one run, in a loop, and runs of 64 images; no request,
no batcher, no answer. Asked in lines on standard input (`png MODEL COUNT`, `batch MODEL COUNT`, `answers MODEL`,
`version`), it answers each with a line of JSON. MODEL is counted from 0; an ONNX file may be followed by `:extended`,
the optimization that `stride tune` chose for it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from contracts.bundle import INPUT, OUTPUT
from contracts.image_spec import ImageSpec
from contracts.images import decode, encode_png
from services.inference import provider

ROWS: Final = 64


class Floor:
    def __init__(self, images: Path, models: list[str]) -> None:
        pixels = np.load(images)
        self._spec = ImageSpec(height=pixels.shape[1], width=pixels.shape[2], channels=pixels.shape[3])
        self._files = [encode_png(image) for image in pixels]
        self._batch = np.ascontiguousarray(np.resize(pixels, (ROWS, *pixels.shape[1:])))
        self._sessions = [open_session(model) for model in models]

    def png(self, model: int, count: int) -> dict[str, float]:
        """Files decoded and run one by one."""
        session, files, spec = self._sessions[model], self._files, self._spec
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(count):
            session.run([OUTPUT], {INPUT: decode(files[number % len(files)], spec)[np.newaxis]})
        return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "images": count}

    def batch(self, model: int, count: int) -> dict[str, float]:
        """Runs of `ROWS` images that are arrays already."""
        session, batch = self._sessions[model], self._batch
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            session.run([OUTPUT], {INPUT: batch})
        return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "images": count * ROWS}

    def answers(self, model: int) -> list[list[float]]:
        """The probabilities of every image, run alone."""
        found = []
        for file in self._files:
            row = self._sessions[model].run([OUTPUT], {INPUT: decode(file, self._spec)[np.newaxis]})[0][0]
            found.append(row.tolist())
        return found


def open_session(model: str) -> Any:
    """A session as Stride's engine makes it, with a thread for each core that this process may use."""
    import onnxruntime as ort

    path, _, level = model.partition(":")
    options = ort.SessionOptions()  # type: ignore[attr-defined]
    options.intra_op_num_threads = provider.threads(1)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if level == "extended":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED  # type: ignore[attr-defined]
    return ort.InferenceSession(  # type: ignore[attr-defined]
        Path(path).read_bytes(), options, ["CPUExecutionProvider"]
    )


def main() -> None:
    images, *models = sys.argv[1:]
    floor = Floor(Path(images), models)
    for line in sys.stdin:
        word, *numbers = line.split()
        answer: Any = {"onnxruntime": _version()} if word == "version" else getattr(floor, word)(*map(int, numbers))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


if __name__ == "__main__":
    main()
