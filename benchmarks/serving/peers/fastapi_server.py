"""python -m uvicorn benchmarks.serving.peers.fastapi_server:app --no-access-log

An upload as FastAPI's tutorial has it, with a declared answer. `async`: on one core its thread pool would only add
its cost.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, UploadFile
from pydantic import BaseModel

from benchmarks.serving.peers.model import Net

net = Net()
app = FastAPI()


class Prediction(BaseModel):
    label: str
    probabilities: list[float]


@app.post("/predict", response_model=Prediction)
async def predict(image: UploadFile) -> Any:
    return net.answer(await image.read())


@app.get("/ready")
async def ready() -> str:
    return "ready"
