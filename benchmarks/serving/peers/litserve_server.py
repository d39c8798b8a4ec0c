"""python -m benchmarks.serving.peers.litserve_server HOST PORT

The image comes in base64 in JSON, as LitServe's examples have it; one worker, ZeroMQ between it and the HTTP server,
which LitServe recommends above 100 requests a second.
"""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.peers.model import Net, decode


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it by name
        self.net = Net()

    # No annotations on these two: LitServe would take them for the types of FastAPI's route.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return decode(base64.b64decode(request["image"]))

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        (found,) = self.net.run(x[np.newaxis])
        return np.asarray(found)

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return self.net.worded(output)


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True)
    host, port = sys.argv[1:]
    server.run(
        host=host,
        port=int(port),
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
