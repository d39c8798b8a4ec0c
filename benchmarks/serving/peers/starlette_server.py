"""python -m uvicorn benchmarks.serving.peers.starlette_server:app --no-access-log

The least that a server in Python can be: the body is the PNG, nothing is checked, nothing is counted. The graph runs
on the event loop: on one core a thread would only add its cost.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from benchmarks.serving.peers.model import Net

net = Net()


async def predict(request: Request) -> JSONResponse:
    return JSONResponse(net.answer(await request.body()))


async def ready(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ready")


app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/ready", ready)])
