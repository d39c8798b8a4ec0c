"""bentoml serve services.inference.service:Inference --host 127.0.0.1 --port 3000

BentoML hosts: it makes the workers, listens, restarts and answers /livez and /readyz. What is served is in app.py.
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import bentoml
import uvicorn.config
from starlette.exceptions import HTTPException

from contracts.errors import RecipeError
from services.inference import door, keys, otlp, settings, supervisor
from services.inference.app import Application, Front
from services.inference.bento import Parts
from services.inference.connection import Connection

try:
    _READ = settings.read()  # BentoML wants the workers in the declaration; the rest is read again at the start,
    otlp.read()  # but a start that cannot succeed is to end here, in one sentence
    if _READ.api_keys_file is not None:
        keys.Keys(_READ.api_keys_file, metrics=_READ.metrics_keys_file)
except RecipeError as error:
    sys.exit(f"stride: {error.message}")

# BentoML passes no protocol, so uvicorn looks up this entry.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "services.inference.connection:Connection"
door.attend(partial(setattr, Connection, "door"))
app = Application()


@bentoml.service(
    workers=_READ.workers,
    # Each is on the path of every request: ours are cheaper, and their labels do not grow with what clients send.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*", "sample_rate": 0.0},
)
@bentoml.asgi_app(app, path="/")
class Inference:
    """Classifies images with the champions of MLflow's registry; the routes are described at /docs."""

    @bentoml.api(route="/predict")  # type: ignore[untyped-decorator]
    async def predict(self, image: list[Path], model: str | None = None, top_k: int | None = None) -> dict[str, Any]:
        """Classify one image file or several: the model's name and version, and one prediction an image.

        Over HTTP this is answered by bento.Parts, before BentoML reads anything; called in the process, so it is here.
        """
        files = [await asyncio.to_thread(path.read_bytes) for path in image]
        form = Parts(arguments=(files, model, top_k))
        body, _ = await app.predictor.predict({"headers": [], "query_string": b""}, _nobody_leaves, form)
        answer: dict[str, Any] = json.loads(body)
        return answer

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def prepare() -> None:
        """In the supervisor, before it starts the workers."""
        supervisor.notice_dead_workers()

    async def __is_ready__(self) -> bool:
        if (why := app.why_not_ready()) is not None:
            raise HTTPException(503, detail=f"not ready: {why}")
        return True


async def _nobody_leaves() -> dict[str, Any]:
    """What a request without a client receives: nothing, ever."""
    await asyncio.Event().wait()
    return {}


# BentoML routes to its own addresses before it comes to ours.
Inference.add_asgi_middleware(keys.Guard, allow=app.allow)  # type: ignore[attr-defined] # bentoml.service made one of it
Inference.add_asgi_middleware(Front, ours=app)  # type: ignore[attr-defined] # as above
