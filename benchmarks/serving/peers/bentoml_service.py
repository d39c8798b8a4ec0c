"""bentoml serve benchmarks.serving.peers.bentoml_service:Classifier

BentoML's own way: a batchable API over images, batched by its adaptive batcher, one worker. All as it comes, but for
the access log, which the other servers do not write either.
"""

from __future__ import annotations

import bentoml
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from benchmarks.serving.peers.model import Net


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Classifier:
    def __init__(self) -> None:
        self.net = Net()

    @bentoml.api(batchable=True, max_batch_size=64)  # type: ignore[untyped-decorator]
    def predict(self, images: list[Image]) -> NDArray[np.float32]:
        pixels = [np.asarray(image.convert("L"), dtype=np.uint8)[:, :, np.newaxis] for image in images]
        return self.net.run(np.stack(pixels))
