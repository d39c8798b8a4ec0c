"""bentoml serve services.inference.service:Inference --host 127.0.0.1 --port 3000

BentoML hosts: it makes the workers, listens, restarts and answers /livez and /readyz. What is served is in app.py.
"""

from __future__ import annotations

import sys

import bentoml
from starlette.exceptions import HTTPException

from contracts.errors import RecipeError
from services.inference import settings
from services.inference.app import Application

try:
    _WORKERS = settings.read().workers  # BentoML wants it in the declaration; the rest is read again at the start
except RecipeError as error:
    sys.exit(f"stride: {error.message}")

app = Application()


@bentoml.service(
    workers=_WORKERS,
    # Each is on the path of every request: ours are cheaper, and their labels do not grow with what clients send.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*", "sample_rate": 0.0},
)
@bentoml.asgi_app(app, path="/")
class Inference:
    """Classifies images with the champions of MLflow's registry; the routes are described at /docs."""

    async def __is_ready__(self) -> bool:
        if (why := app.why_not_ready()) is not None:
            raise HTTPException(503, detail=f"not ready: {why}")
        return True
