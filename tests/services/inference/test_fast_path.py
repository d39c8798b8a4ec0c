"""services.inference.fast_path: the same answers as on the usual way, and everything else given back to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from contracts.images import encode_png
from contracts.registry import Rollout
from services.inference.batcher import Batcher
from services.inference.decoding import Decoder
from services.inference.engine import Engine
from services.inference.fast_path import Asked, FastPath
from services.inference.keys import Keys
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.piece import read
from services.inference.provider import CPU, Provider
from services.inference.store import Served
from services.inference.variants import Variant

SERVER = [(b"date", b"today")]


def request(body: bytes, *fields: bytes, path: bytes = b"/v1/predict") -> bytes:
    head = b"".join(field + b"\r\n" for field in (b"Host: x", *fields, b"Content-Length: %d" % len(body)))
    return b"POST %b HTTP/1.1\r\n%b\r\n%b" % (path, head, body)


class Client:
    """Who asks: keeps what it is answered, and what it has to have parsed."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.taken_back = 0

    def answer(self, data: bytes) -> None:
        self.answers.append(data)

    def take_back(self) -> None:
        self.taken_back += 1


class Way:
    """The fast path to a model (seed 1), inside the running loop."""

    def __init__(self, tiny: Any, path: Path, *, infer: Callable[[Any], Any] | None = None, **options: Any) -> None:
        self._tiny, self._path, self._infer = tiny, path, infer
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.models = Models(default=None, metrics=self.metrics)
        self.decoder = Decoder(threads=1, max_pixels=10_000)
        options = {"max_bytes": 10_000, **options}
        self.fast_path = FastPath(self.models, self.metrics, self.decoder, **options)
        self.runs: list[int] = []

    async def serve(self, seed: int = 1, variant: Variant = "champion", *, alone: bool = False) -> Model:
        engine = Engine(self._tiny(seed).bundle(self._path / variant), Provider(CPU, "a test"), threads=1, max_batch=4)

        def infer(batch: Any) -> Any:
            self.runs.append(len(batch))
            return (self._infer or engine.infer)(batch)

        loop = asyncio.get_running_loop()
        observe = lambda ran: self.metrics.ran("shapes", ran)  # noqa: E731
        options: dict[str, Any] = {"max_batch": 4, "queue_rows": 64, "at_once_s": 60.0, "alone": alone}
        batcher = Batcher(infer, loop=loop, on_batch=observe, **options)
        model = Model(Served("shapes", str(seed), "0" * 64, 1), engine, batcher, variant)
        self.models.swap(model)
        return model

    async def know(self, model: Model) -> None:
        """Have the batcher know how long a run takes."""
        blank = np.zeros((1, *model.spec.shape), dtype=np.uint8)
        model.batcher.admit(1)
        await asyncio.gather(model.batcher.submit(blank, expires=float("inf"), aside=True), return_exceptions=True)
        model.batcher.release(1)
        self.runs.clear()

    def ask(self, data: bytes, client: Client) -> Asked | None:
        piece = read(data)
        assert piece is not None
        if (asked := self.fast_path.take(piece, client)) is not None:
            self.fast_path.begin(asked, SERVER)
        return asked


def run(tiny: Any, path: Path, body: Callable[[Way], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        way = Way(tiny, path, **options)
        await body(way)
        await way.models.drain()
        way.decoder.close()

    asyncio.run(main())


async def round_of_the_loop() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_comes_in_one_round_is_run_together_and_each_gets_its_own_answer(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    async def body(way: Way) -> None:
        await way.know(await way.serve())
        clients = [Client() for _ in range(6)]
        for number, client in enumerate(clients):
            assert way.ask(request(encode_png(make_image(number)), b"X-Request-ID: r%d" % number), client)
        await round_of_the_loop()
        assert way.runs == [4, 2]  # max_batch is 4
        for number, client in enumerate(clients):
            head, _, content = client.answers[0].partition(b"\r\n\r\n")
            expected = tiny(1).probabilities(make_image(number)[np.newaxis])[0]
            assert json.loads(content)["predictions"][0]["probability"] == pytest.approx(expected.max(), abs=1e-5)
            lines = head.split(b"\r\n")
            assert lines[:2] == [b"HTTP/1.1 200 OK", b"date: today"]
            assert {b"x-request-id: r%d" % number, b"content-length: %d" % len(content)} <= set(lines)
        way.metrics.publish()
        count = way.registry.get_sample_value
        for series in ("stride_predictions_total", "stride_request_seconds_count", "stride_decode_seconds_count"):
            assert count(series, {"model": "shapes"}) == 6, series
        assert count("stride_queue_seconds_count", {"model": "shapes"}) == 6 + 1  # and the one of `know`
        assert count("stride_http_requests_total", {"route": "predict", "status": "2xx"}) == 6

    run(tiny, tmp_path, body)


def test_more_than_may_hold_up_the_loop_goes_the_usual_way_where_a_limit_counts_it(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    async def body(way: Way) -> None:
        model = await way.serve(alone=True)
        model.batcher._at_once_s, model.batcher._runs.row_s = 1.0, 0.4  # two rows
        clients = [Client() for _ in range(3)]
        asked = [way.ask(request(encode_png(make_image(number))), client) for number, client in enumerate(clients)]
        assert [one is not None for one in asked] == [True, True, False]
        piece = read(request(encode_png(make_image(3))))
        assert piece is not None
        assert way.fast_path.take(piece, clients[2], together=3) is None
        await round_of_the_loop()
        assert [len(client.answers) for client in clients] == [1, 1, 0]
        assert way.runs == [2]

    run(tiny, tmp_path, body)


def test_what_is_no_image_or_a_large_one_is_given_back_and_the_others_are_answered(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    large = encode_png(np.zeros((200, 200, 1), dtype=np.uint8))  # few bytes, but many pixels

    async def body(way: Way) -> None:
        await way.know(await way.serve())
        clients = [Client() for _ in range(3)]
        for client, image in zip(clients, (b"no image", large, encode_png(make_image(1))), strict=True):
            assert way.ask(request(image), client)
        await round_of_the_loop()
        assert [(len(client.answers), client.taken_back) for client in clients] == [(0, 1), (0, 1), (1, 0)]
        assert way.runs == [1]

    run(tiny, tmp_path, body)


def failing(_: Any) -> Any:
    raise ValueError("this graph cannot compute")


def no_number(batch: Any) -> Any:
    return np.full((len(batch), 3), np.nan, dtype=np.float32)


@pytest.mark.parametrize("infer", [failing, no_number])
def test_where_the_graph_fails_all_are_given_back(tiny: Any, make_image: Any, tmp_path: Path, infer: Any) -> None:
    async def body(way: Way) -> None:
        await way.know(await way.serve())
        clients = [Client() for _ in range(2)]
        for client in clients:
            assert way.ask(request(encode_png(make_image(1))), client)
        await round_of_the_loop()
        assert [(client.answers, client.taken_back) for client in clients] == [([], 1)] * 2
        way.metrics.publish()
        assert not way.registry.get_sample_value("stride_predictions_total", {"model": "shapes"})

    run(tiny, tmp_path, body, infer=infer)


def test_without_a_model_with_a_challenger_and_while_the_thread_works_it_is_not_gone(
    tiny: Any, make_image: Any, tmp_path: Path
) -> None:
    async def body(way: Way) -> None:
        async def passed_over(path: bytes = b"/v1/predict") -> bool:
            client = Client()
            asked = way.ask(request(encode_png(make_image(1)), path=path), client)
            await round_of_the_loop()
            assert client.taken_back == 0  # it was not taken in the first place
            assert len(client.answers) == (asked is not None)
            return asked is None

        assert await passed_over()
        model = await way.serve()
        assert await passed_over()  # how quick it is, nobody knows yet
        await way.know(model)
        assert not await passed_over()
        assert not await passed_over(b"/v1/models/shapes/predict")
        assert await passed_over(b"/v1/models/others/predict")
        model.batcher.admit(1)
        gate.clear()
        blank = np.zeros((1, *model.spec.shape), dtype=np.uint8)
        waiting = model.batcher.submit(blank, expires=float("inf"), aside=True)
        assert await passed_over()
        gate.set()
        await waiting
        model.batcher.release(1)
        await way.serve(2, "challenger")
        way.models.follow("shapes", Rollout(50), None)
        assert await passed_over()

    gate = threading.Event()
    gate.set()

    def gated(batch: Any) -> Any:
        assert gate.wait(60)
        return np.full((len(batch), 3), 1 / 3, dtype=np.float32)

    run(tiny, tmp_path, body, infer=gated)


def test_of_more_than_may_hold_up_the_loop_only_so_many_are_taken(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def body(way: Way) -> None:
        model = await way.serve()
        await way.know(model)
        model.batcher._runs.row_s = 25.0  # of the 60 that the loop may be held up
        taken = [way.ask(request(encode_png(make_image(1))), Client()) is not None for _ in range(4)]
        assert taken == [True, True, False, False]
        piece = read(request(encode_png(make_image(1))))
        assert piece is not None
        await round_of_the_loop()
        model.batcher._runs.row_s = 25.0
        piece = read(request(encode_png(make_image(3))))
        assert piece is not None
        assert way.fast_path.take(piece, Client(), together=2) is not None
        piece = read(request(encode_png(make_image(3))))
        assert piece is not None
        assert way.fast_path.take(piece, Client(), together=64) is None

    run(tiny, tmp_path, body)


def test_what_has_become_too_slow_meanwhile_is_given_back(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def body(way: Way) -> None:
        model = await way.serve()
        await way.know(model)
        client = Client()
        assert way.ask(request(encode_png(make_image(1))), client)
        model.batcher._runs.row_s = 61.0  # a run has shown that it is slow
        await round_of_the_loop()
        assert (client.answers, client.taken_back) == ([], 1)

    run(tiny, tmp_path, body)


def test_who_has_left_is_not_answered(tiny: Any, make_image: Any, tmp_path: Path) -> None:
    async def body(way: Way) -> None:
        await way.know(await way.serve())
        client = Client()
        asked = way.ask(request(encode_png(make_image(1))), client)
        assert asked is not None
        asked.asker = None
        await round_of_the_loop()
        assert (client.answers, client.taken_back, way.runs) == ([], 0, [])

    run(tiny, tmp_path, body)


@pytest.mark.parametrize(
    "data",
    [
        request(b"x", path=b"/v1/predict?top_k=1"),
        request(b"x", path=b"/predict"),
        request(b"x", path=b"/v2/models/shapes/infer"),
        request(b"x", path=b"/v1/models/a%20b/predict"),
        request(b"x", path=b"/v1/models/a#b/predict"),
        request(b"x", b"Content-Type: multipart/form-data; boundary=b"),
        request(b"x", b"X-Stride-Variant: champion"),
        request(b"x" * 10_001),
    ],
)
def test_what_has_options_goes_the_usual_way(tiny: Any, tmp_path: Path, data: bytes) -> None:
    async def body(way: Way) -> None:
        await way.know(await way.serve())
        assert way.ask(data, Client()) is None
        assert way.ask(request(b"x", b"Content-Type: image/png"), Client()) is not None

    run(tiny, tmp_path, body)


def test_where_keys_are_asked_for_only_who_has_one_goes_it(tiny: Any, tmp_path: Path) -> None:
    key = "0123456789abcdef0123456789abcdef"
    (tmp_path / "keys").write_text(key)

    async def body(way: Way) -> None:
        await way.know(await way.serve())
        for fields in ((), (b"Authorization: Bearer " + b"f" * 32,), (b"X-API-Key: " + b"f" * 32,)):
            assert way.ask(request(b"x", *fields), Client()) is None
        for field in (b"authorization: bearer " + key.encode(), b"X-API-Key: " + key.encode()):
            assert way.ask(request(b"x", field), Client()) is not None

    run(tiny, tmp_path, body, keys=Keys(tmp_path / "keys"))


def received(client: socket.socket) -> tuple[dict[str, str], bytes]:
    """The fields and the content of one answer with status 200."""
    data = b""
    while not data.endswith(b"]}]}"):  # of the JSON
        data += (more := client.recv(65536))
        assert more, data
    head, _, content = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    return dict(line.split(": ", 1) for line in lines[1:]), content


def test_over_a_socket_one_piece_and_two_are_answered_alike(plain: Any, make_image: Any) -> None:
    with socket.create_connection(("127.0.0.1", plain.port), timeout=20) as client:
        for number in range(20):
            whole = request(encode_png(make_image(number)), b"X-Request-ID: mine")
            client.sendall(whole)
            one, content = received(client)
            client.sendall(whole[:100])
            time.sleep(0.01)
            client.sendall(whole[100:])
            two, again = received(client)
            assert json.loads(content) == json.loads(again)
            assert {**one, "date": ""} == {**two, "date": ""}


def test_what_is_sent_behind_a_piece_that_waits_is_answered_behind_it(plain: Any, make_image: Any) -> None:
    with socket.create_connection(("127.0.0.1", plain.port), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(50):
            for part in range(3):  # as many pieces as the server happens to read them in
                client.sendall(request(encode_png(make_image(part)), b"X-Request-ID: %d-%d" % (number, part)))
            data = b""
            while data.count(b"]}]}") < 3:
                data += (more := client.recv(65536))
                assert more, data
            ids = [line[14:] for line in data.split(b"\r\n") if line.startswith(b"x-request-id: ")]
            assert ids == [b"%d-%d" % (number, part) for part in range(3)]
