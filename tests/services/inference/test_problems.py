"""services.inference.problems: every code is in one table and in the OpenAPI document, and comes when it should."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts import errors as shared
from contracts.errors import DeviceError, StrideError
from contracts.images import encode_png
from services.inference import connection, errors, openapi, problems
from services.inference.app import Application
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.keys import Keys
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.predict import Predictor
from services.inference.provider import CPU, Provider
from services.inference.settings import Settings
from services.inference.store import Served

PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
OF_THE_CONNECTION = {"malformed_request", "head_too_large"}
OF_V2 = {"invalid_tensor", "unknown_encoding"}
NOT_ANSWERED = {"invalid_recipe", "invalid_data", "fit_failed", "export_failed", "invalid_bundle", "gate_refused"}
NOT_ANSWERED |= {"registry_unavailable", "already_fitting", "fit_diverged"}


def table() -> dict[str, int]:
    assert problems.__doc__ is not None
    rows = re.findall(r"^\| (\w+) \| (\d{3}) \| .+ \| .+ \|$", problems.__doc__, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {code: int(status) for code, status in rows}


def kinds(kind: type[StrideError] = StrideError) -> Iterator[type[StrideError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_the_table_holds_every_code_that_a_server_can_answer_with_its_status() -> None:
    ours = [kind for kind in kinds() if kind.__module__ in (shared.__name__, errors.__name__)]
    answered = {kind.code: kind.status for kind in ours if kind.code not in NOT_ANSWERED}
    assert {code: status for code, status in table().items() if code not in OF_THE_CONNECTION} == answered
    source = Path(connection.__file__).read_text()
    assert set(re.findall(r'HTTPStatus\.\w+, "(\w+)"', source)) == OF_THE_CONNECTION


def test_the_openapi_document_names_every_code_at_its_status() -> None:
    document = openapi.document()
    told: dict[str, set[int]] = {}
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                for code in re.findall(r"`([a-z_]+)`", response["description"]):
                    told.setdefault(code, set()).add(int(status))
    wanted = {code: {status} for code, status in table().items() if code not in OF_V2}
    assert {code: told.get(code) for code in wanted} == wanted


@dataclass
class Asked:
    """One request, straight into the application, and what it needs to go wrong."""

    path: str = "/v1/predict"
    body: bytes = PNG
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: str = "POST"
    query: bytes = b""
    before: Callable[[Application], object] = lambda _: None
    ends: bool = True


def full(application: Application) -> None:
    model = application.models.get()
    model.batcher.admit(1024)


def failing(application: Application) -> None:
    def infer(_: Any) -> Any:
        raise RuntimeError("a kernel failed")

    model = application.models.get()
    loop = asyncio.get_running_loop()
    model.batcher = Batcher(infer, loop=loop, max_batch=4, queue_rows=1024)


def refused(application: Application) -> None:
    application.models.refusal = DeviceError("STRIDE_REQUIRE_GPU is 1, but there is no usable GPU.")


def forgotten(application: Application) -> None:
    application.models = Models(default=None, metrics=application.metrics)
    application.predictor._models = application.models


def keyed(application: Application) -> None:
    path = Path(application.predictor._settings.home) / "keys"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("0123456789abcdef\n")
    application.keys = Keys(path)


def broken(application: Application) -> None:
    del application.predictor


V2 = "/v2/models/shapes/infer"
CASES = {
    "undecodable_image": Asked(body=PNG[:40]),
    "malformed_body": Asked(headers=((b"content-type", b"multipart/form-data; boundary=b"),)),
    "invalid_tensor": Asked(V2, b'{"inputs": [{"name": "images", "shape": [1], "datatype": "FP64", "data": [1]}]}'),
    "unauthorized": Asked(before=keyed),
    "not_found": Asked("/v1/models/nobody/predict"),
    "method_not_allowed": Asked(method="GET"),
    "slow_body": Asked(ends=False),
    "too_large": Asked(headers=((b"content-length", b"5000000000"),)),
    "not_an_image": Asked(body=b"%!PS-Adobe"),
    "unknown_encoding": Asked(V2, b"x", headers=((b"content-encoding", b"br"),)),
    "invalid_request": Asked(query=b"top_k=none"),
    "overloaded": Asked(before=full),
    "internal_error": Asked(before=broken),
    "inference_failed": Asked(before=failing),
    "no_model": Asked(before=forgotten),
    "device_unavailable": Asked(before=refused),
}


async def ask(asked: Asked, made: Callable[[], Awaitable[Application]]) -> tuple[int, dict[bytes, bytes], bytes]:
    application = await made()
    asked.before(application)
    sent: list[dict[str, Any]] = []
    whole = [{"type": "http.request", "body": asked.body, "more_body": not asked.ends}]

    async def receive() -> dict[str, Any]:
        if whole:
            return whole.pop()
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": asked.method, "path": asked.path, "query_string": asked.query}
    await application({**scope, "headers": list(asked.headers)}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("code", sorted(table().keys() - OF_THE_CONNECTION))
def test_a_code_comes_when_the_table_says_so_and_is_counted(code: str, tiny: Any, tmp_path: Path) -> None:
    registry = CollectorRegistry()

    async def made() -> Application:
        application = Application()
        application.metrics = Metrics(registry)
        application.models = Models(default=None, metrics=application.metrics)
        read = Settings(home=tmp_path, tracking_uri="", body_s=0.1)
        application.predictor = Predictor(read, application.models, application.metrics, decoders=1)
        engine = Engine(tiny(1).bundle(tmp_path / "b"), Provider(CPU, "a test"), threads=1, max_batch=4)
        batcher = Batcher(engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=1024)
        application.models.swap(Model(Served("shapes", "1", "0" * 64, 0), engine, batcher))
        return application

    asked = CASES[code]
    status, headers, body = asyncio.run(ask(asked, made))
    assert status == table()[code]
    assert registry.get_sample_value("stride_errors_total", {"code": code}) == 1
    assert int(headers[b"content-length"]) == len(body)
    assert b"x-request-id" in headers
    content = json.loads(body)
    if asked.path == V2:
        assert content.keys() == {"error"}
        return
    assert headers[b"content-type"] == b"application/problem+json"
    assert content.keys() == {"type", "title", "status", "detail", "code"}
    assert (content["type"], content["status"], content["code"]) == (f"urn:stride:error:{code}", status, code)
    assert content["detail"].endswith(".")
    assert "\n" not in content["detail"]
    assert (b"retry-after" in headers) == (status in (429, 503))
    assert (b"www-authenticate" in headers) == (status == 401)
    assert (b"allow" in headers) == (status == 405)
