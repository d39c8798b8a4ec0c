"""What every server here does with a PNG: Pillow, one session of onnxruntime, probabilities.

The environment says what is served: BENCH_MODEL (an ONNX file), BENCH_LABELS (a JSON list).
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image


class Net:
    """One session with a thread for each core that this process may use, and no spinning: as Stride has it."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session: Any = onnxruntime.InferenceSession(  # type: ignore[attr-defined]
            Path(os.environ["BENCH_MODEL"]).read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        self.labels: list[str] = json.loads(os.environ["BENCH_LABELS"])

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (n, classes) of images (n, 28, 28, 1)."""
        found: NDArray[np.float32] = self.session.run(["probabilities"], {"images": images})[0]
        return found

    def answer(self, png: bytes) -> dict[str, Any]:
        """The whole answer to one PNG."""
        return self.worded(self.run(decode(png)[np.newaxis])[0])

    def worded(self, probabilities: NDArray[np.float32]) -> dict[str, Any]:
        """The answer that goes out, for one row."""
        return {"label": self.labels[int(probabilities.argmax())], "probabilities": probabilities.tolist()}


def decode(png: bytes) -> NDArray[np.uint8]:
    """uint8 (28, 28, 1)."""
    image = Image.open(io.BytesIO(png))
    return np.asarray(image if image.mode == "L" else image.convert("L"), dtype=np.uint8)[:, :, np.newaxis]
