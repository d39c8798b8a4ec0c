"""The HTTP client behind `stride predict`, against a real server that answers as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import DataError
from pipelines import predict as client
from pipelines.predict import Image, PredictError, PredictRefusedError


class Service(ThreadingHTTPServer):
    """Answers `status` and `body`; by default one prediction for each part of the request."""

    status = 200
    body: bytes | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        self.server.keys.append(self.headers["X-API-Key"])
        predictions = [{"label": "seven", "index": 7, "probability": 0.9}] * content.count(b'name="image"')
        answer = {"model": {"name": "digits", "version": "3"}, "predictions": predictions}
        body = json.dumps(answer).encode() if self.server.body is None else self.server.body
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Tests are quiet."""


@contextmanager
def running(service: Service) -> Iterator[Service]:
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    with running(Service()) as started:
        yield started


def images(count: int) -> list[Image]:
    return [Image(f"{number}.png", b"\x89PNG") for number in range(count)]


def test_each_image_gets_its_prediction_by_name(service: Service) -> None:
    answer = client.predict(images(2), url=service.url, top_k=1)
    assert answer["model"] == {"name": "digits", "version": "3"}
    assert [each["image"] for each in answer["predictions"]] == ["0.png", "1.png"]
    assert service.asked == ["/v1/predict?top_k=1"]


def test_a_model_is_asked_by_its_name(service: Service) -> None:
    client.predict(images(1), url=f"{service.url}/", model="pets")
    assert service.asked == ["/v1/models/pets/predict"]


def test_many_images_are_sent_in_several_requests(service: Service) -> None:
    answer = client.predict(images(client.PER_REQUEST + 1), url=service.url)
    assert len(answer["predictions"]) == client.PER_REQUEST + 1
    assert len(service.asked) == 2


@pytest.mark.parametrize("body", [b'{"detail": "too large"}', b'{"error": "too large"}'])
def test_a_refusal_says_why_and_exits_2(service: Service, body: bytes) -> None:
    service.status, service.body = 413, body
    with pytest.raises(PredictRefusedError, match="answered 413: too large") as caught:
        client.predict(images(1), url=service.url)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_of_the_service_exits_1(service: Service, status: int) -> None:
    service.status, service.body = status, b"not json"
    with pytest.raises(PredictError, match=f"answered {status}") as caught:
        client.predict(images(1), url=service.url)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"model": {"name": "a"}, "predictions": []}'])
def test_an_answer_without_predictions_is_not_taken(service: Service, body: bytes) -> None:
    service.body = body
    with pytest.raises(PredictError, match="without predictions"):
        client.predict(images(1), url=service.url)


def test_a_service_that_is_not_there_is_told_with_the_remedy(free_port: int) -> None:
    with pytest.raises(PredictError, match="start the service with 'stride serve'"):
        client.predict(images(1), url=f"http://127.0.0.1:{free_port}")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(PredictRefusedError, match="is not an address"):
        client.predict(images(1), url="127.0.0.1:3000")


def test_an_image_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png' cannot be read"):
        client.read([tmp_path / "none.png"])


def test_the_key_of_the_environment_is_sent_and_none_without_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIDE_API_KEY", "a-key-of-sixteen-characters")
    client.predict([Image("a.png", b"1")], url=service.url)
    monkeypatch.delenv("STRIDE_API_KEY")
    client.predict([Image("a.png", b"1")], url=service.url)
    assert service.keys == ["a-key-of-sixteen-characters", None]
