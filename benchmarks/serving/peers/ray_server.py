"""python -m benchmarks.serving.peers.ray_server HOST PORT DIRECTORY

One replica behind Ray Serve's HTTP proxy, on a Ray of its own with one CPU and without the dashboard; the body is the
PNG. The access log is off, as everywhere here.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving.peers.model import Net


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=128,
    ray_actor_options={"num_cpus": 0.5},
    logging_config={"enable_access_log": False},
)
class Classifier:
    def __init__(self) -> None:
        self.net = Net()

    async def __call__(self, request: Request) -> dict[str, Any]:
        if request.method == "GET":
            return {"ready": True}
        return self.net.answer(await request.body())


def main() -> None:
    host, port, directory = sys.argv[1:]
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ray.init(num_cpus=1, num_gpus=0, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=directory)
    serve.start(http_options={"host": host, "port": int(port)}, logging_config={"enable_access_log": False})
    serve.run(Classifier.bind(), name="fashion", route_prefix="/")  # type: ignore[attr-defined] # made by the decorator
    ended.wait()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


if __name__ == "__main__":
    main()
