"""services.inference.app over real sockets: the routes, their answers and their errors."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from contracts.images import encode_png
from services.inference.app import Application
from services.inference.metrics import Metrics

Images = Callable[[int], NDArray[np.uint8]]


def test_a_raw_image_is_answered_as_the_design_says(http: httpx.Client, tiny: Any, make_image: Images) -> None:
    response = http.post("/v1/predict", content=encode_png(make_image(7)))
    wanted = tiny(1).probabilities(make_image(7)[np.newaxis])[0]
    order = np.argsort(-wanted)
    labels = ("circle", "square", "triangle")
    answer = response.json()
    assert response.status_code == 200
    assert answer.keys() == {"model", "predictions"}
    assert answer["model"] == {"name": "shapes", "version": "1", "provider": "CPUExecutionProvider"}
    (prediction,) = answer["predictions"]
    assert prediction.keys() == {"label", "index", "probability", "top"}
    assert (prediction["label"], prediction["index"]) == (labels[order[0]], order[0])
    assert [one["index"] for one in prediction["top"]] == order.tolist()
    np.testing.assert_allclose([one["probability"] for one in prediction["top"]], wanted[order], atol=1e-5)
    assert response.headers["x-stride-provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize("content_type", [None, "image/png", "image/jpg", "application/json", "nonsense"])
def test_the_declared_type_of_a_raw_body_does_not_matter(
    http: httpx.Client, make_image: Images, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert http.post("/v1/predict", content=encode_png(make_image(1)), headers=headers).status_code == 200


def test_a_form_of_many_images_is_answered_in_their_order(http: httpx.Client, tiny: Any, make_image: Images) -> None:
    batch = np.stack([make_image(k) for k in range(8)])
    files = [("image", (f"{k}.png", encode_png(one), "image/png")) for k, one in enumerate(batch)]
    answer = http.post("/v1/predict?top_k=1", files=files).json()
    assert [one["index"] for one in answer["predictions"]] == tiny(1).probabilities(batch).argmax(axis=1).tolist()
    assert all(len(one["top"]) == 1 for one in answer["predictions"])


def test_a_streamed_body_is_answered(http: httpx.Client, make_image: Images) -> None:
    png = encode_png(make_image(1))
    assert http.post("/v1/predict", content=iter([png[:20], png[20:]])).status_code == 200


def test_a_model_is_also_served_under_its_name(http: httpx.Client, make_image: Images) -> None:
    response = http.post("/v1/models/shapes/predict", content=encode_png(make_image(1)))
    assert response.json()["model"]["name"] == "shapes"


def test_the_request_id_comes_back_and_is_made_up_otherwise(http: httpx.Client, make_image: Images) -> None:
    png = encode_png(make_image(1))
    assert http.post("/v1/predict", content=png, headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made_up = http.post("/v1/predict", content=png, headers={"X-Request-ID": "<script>"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", made_up)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/unknown", 404, "not_found"),
        ("POST", "/v1/models/unknown/predict", 404, "not_found"),
        ("POST", "/v1/models/a/b/predict", 404, "not_found"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/", 405, "method_not_allowed"),
        ("POST", "/v1/predict?top_k=0", 422, "invalid_request"),
        ("POST", "/v1/predict?top_k=4", 422, "invalid_request"),
        ("POST", "/v1/predict?top_k=-1", 422, "invalid_request"),
        ("POST", "/v1/predict?top_k=two", 422, "invalid_request"),
        ("POST", "/v1/predict?top_k=", 422, "invalid_request"),
        ("POST", "/v1/predict?top_k=1&top_k=2", 422, "invalid_request"),
        ("POST", "/v1/predict?topk=1", 422, "invalid_request"),
    ],
)
def test_a_wrong_address_method_or_parameter_is_one_problem_object(
    http: httpx.Client, make_image: Images, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path, content=encode_png(make_image(1)) if method == "POST" else None)
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert (status == 405) == ("allow" in response.headers)


def test_the_page_is_whole_without_any_other_host(http: httpx.Client) -> None:
    response = http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "http://" not in response.text
    assert "https://" not in response.text
    assert http.head("/").status_code == 200


def test_bentoml_and_we_answer_our_own_addresses(http: httpx.Client) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/docs", "/docs.json", "/openapi.json", "/metrics", "/v1/models"):
        assert http.get(path).status_code == 200, path
    for asset in re.findall(r'(?:src|href)="(/static_content/[^"]+)"', http.get("/docs").text):
        assert http.get(asset).status_code == 200, asset


def test_the_openapi_document_names_every_route_and_status(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert {"/", "/v1/predict", "/v1/models", "/v1/models/{name}/predict", "/metrics"} <= document["paths"].keys()
    for path in ("/v1/predict", "/v1/models/{name}/predict"):
        statuses = document["paths"][path]["post"]["responses"].keys()
        assert {"200", "400", "404", "405", "413", "415", "422", "429", "503"} <= statuses


def test_the_models_are_described(http: httpx.Client) -> None:
    answer = http.get("/v1/models").json()
    shapes = next(entry for entry in answer["models"] if entry["name"] == "shapes")
    assert shapes["serving"]["labels"] == ["circle", "square", "triangle"]
    assert shapes["serving"]["provider_reason"] == "STRIDE_DEVICE is cpu"
    assert answer["registry_error"] is None


def test_metrics_count_predictions_and_grow_by_no_client_made_label(http: httpx.Client, make_image: Images) -> None:
    def series() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    http.get("/not-there")
    before = series()
    for number in range(50):
        http.get(f"/not-there-{number}")
        http.post(f"/v1/models/nobody-{number}/predict", content=b"x")
    http.post("/v1/predict", content=encode_png(make_image(1)))
    after = series()
    name = 'stride_predictions_total{model="shapes"}'
    assert after[name] == before.get(name, 0) + 1
    assert after['stride_errors_total{code="not_found"}'] == before['stride_errors_total{code="not_found"}'] + 100
    assert not any("not-there" in key or "nobody" in key for key in after)
    assert 'stride_request_seconds_bucket{le="0.0005",model="shapes"}' in after
    assert 'stride_model_info{model="shapes",precision="fp32",provider="CPUExecutionProvider",version="1"}' in after


def whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(blank) and len(body) >= (int(length[1]) if length else 0)


def exchange(http: httpx.Client, *parts: bytes) -> list[bytes]:
    """Send each part on one connection once the part before is answered; the answers, empty after its end."""
    answers = []
    with socket.create_connection((http.base_url.host, int(http.base_url.port or 0)), timeout=5) as client:
        for part in parts:
            client.sendall(part)
            answer = b""
            while not whole(answer) and (more := client.recv(65536)):
                answer += more
            answers.append(answer)
    return answers


def test_pipelined_requests_are_answered_in_their_order(http: httpx.Client, make_image: Images) -> None:
    sent = b""
    for number in range(20):
        png = encode_png(make_image(number))
        query = b"" if number % 3 else b"?top_k=99"
        head = b"POST /v1/predict%s HTTP/1.1\r\nHost: x\r\nX-Request-ID: r%d\r\nContent-Length: %d\r\n"
        sent += head % (query, number, len(png)) + (b"Connection: close\r\n" if number == 19 else b"") + b"\r\n" + png
    with socket.create_connection((http.base_url.host, int(http.base_url.port or 0)), timeout=5) as client:
        client.sendall(sent)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert re.findall(rb"x-request-id: r(\d+)", received) == [b"%d" % number for number in range(20)]
    wanted = [b"200" if number % 3 else b"422" for number in range(20)]
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == wanted


def test_a_body_that_comes_after_its_refusal_is_not_taken_for_the_next_request(http: httpx.Client) -> None:
    head = b"POST /v1/predict?top_k=99 HTTP/1.1\r\nHost: x\r\nContent-Length: 70\r\n\r\n"
    refused, listed = exchange(http, head, b"x" * 70 + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 422")
    assert listed.startswith(b"HTTP/1.1 200")


def test_a_refusal_before_100_continue_ends_the_connection(http: httpx.Client) -> None:
    # The client need not send the body then, and what it sends next would be taken for that body.
    head = b"POST /v1/predict?top_k=99 HTTP/1.1\r\nHost: x\r\nContent-Length: 70\r\nExpect: 100-continue\r\n\r\n"
    refused, ended = exchange(http, head, b"")
    assert refused.startswith(b"HTTP/1.1 422")
    assert b"connection: close" in refused
    assert ended == b""


def test_an_empty_model_name_is_none_of_the_served(http: httpx.Client, make_image: Images) -> None:
    response = http.post("/v1/models//predict", content=encode_png(make_image(1)))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


def test_a_model_name_is_decoded_once(http: httpx.Client, make_image: Images) -> None:
    response = http.post("/v1/models/%2573hapes/predict", content=encode_png(make_image(1)))
    assert response.status_code == 404
    assert "'%73hapes'" in response.json()["detail"]


def test_a_websocket_is_refused_at_once(http: httpx.Client) -> None:
    head = b"GET /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert exchange(http, head + key)[0].startswith(b"HTTP/1.1 4")


def test_whatever_a_page_meets_is_one_problem_object(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files of the metrics may vanish under the collector; here the directory is a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "file"))
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def ask() -> None:
        application = Application()
        application.metrics = Metrics(CollectorRegistry())
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
        await application(scope, None, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]).keys() == {"type", "title", "status", "detail", "code"}


def test_predictions_do_not_pass_through_the_middleware_of_bentoml(tiny: Any, tmp_path: Path) -> None:
    """In a process of its own, on the application that BentoML makes of the service: what its stack is asked for."""
    script = """
import asyncio, httpx
from services.inference.service import Inference
host = Inference.to_asgi()
async def main():
    async with host.router.lifespan_context(host):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=host), base_url="http://x") as client:
            await client.get("/v1/models")
            front = host.middleware_stack
            behind = front.__closure__[front.__code__.co_freevars.index("behind")]
            stack, asked = behind.cell_contents, []
            async def spy(scope, receive, send):
                asked.append(scope["path"])
                await stack(scope, receive, send)
            behind.cell_contents = spy
            paths = ["/v1/models", "/v1/predict", "/livez", "/readyz", "/metrics", "/docs", "/docs.json", "/"]
            statuses = [(await client.get(path)).status_code for path in paths]
            print(asked, statuses)
asyncio.run(main())
"""
    env = {
        **os.environ,
        "STRIDE_DEVICE": "cpu",
        "STRIDE_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }
    env |= {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
    ended = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    asked = ["/livez", "/readyz", "/metrics", "/docs", "/docs.json", "/"]
    assert ended.stdout.splitlines()[-1:] == [f"{asked} {[200, 405, 200, 503, 200, 200, 200, 200]}"], ended.stderr


def test_no_spelling_of_the_native_address_reaches_bentomls_own_reading_of_it(http: httpx.Client) -> None:
    # It fetches what stands at an address in the form. Its routes end in `$`, which also fits before a newline.
    for path in ("/predict%0A", "/predict/", "/predict;x", "/./predict%0A"):
        response = http.post(path, files={"image": (None, "http://127.0.0.1:9/x")})
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), path
