"""One model, four ways in, one answer; and BentoML's own client."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # BentoML's modules use what pydantic and pathspec deprecate
    from bentoml import AsyncHTTPClient, SyncHTTPClient
    from bentoml.exceptions import BentoMLException

Images = Callable[[int], NDArray[np.uint8]]
ALL = {"top_k": "3"}


@pytest.fixture(scope="module", autouse=True)
def shapes_answers_without_a_name(mlflow_server: Any, http: httpx.Client) -> None:
    """Other tests promote models of their own on the same registry, and the one promoted last is the default."""
    mlflow_server.promote("shapes", "1")
    until = time.monotonic() + 60
    image = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
    while http.post("/v1/predict", content=image).json().get("model", {}).get("name") != "shapes":
        assert time.monotonic() < until, http.get("/v1/models").text
        time.sleep(0.05)  # the service looks at the registry by itself


@pytest.fixture
def client(http: httpx.Client) -> Iterator[Any]:
    with SyncHTTPClient(str(http.base_url)) as made:
        yield made
        made._temp_dir.cleanup()  # its own end leaves that to the garbage collector


@pytest.fixture
def files(make_image: Images, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(encode_png(make_image(number)))
    return paths


def by_index(prediction: dict[str, Any]) -> list[float]:
    return [one["probability"] for one in sorted(prediction["top"], key=lambda one: one["index"])]


@pytest.mark.parametrize("number", range(4))
def test_every_way_in_gives_the_same_probabilities_and_names_the_same_version(
    http: httpx.Client, client: Any, make_image: Images, tmp_path: Path, number: int
) -> None:
    image = make_image(number)
    png = encode_png(image)
    (tmp_path / "a.png").write_bytes(png)
    base = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1]}
    behind = {**base, "parameters": {"binary_data_size": image.nbytes}}

    def infer(given: dict[str, Any], data: bytes = b"", **parameters: bool) -> httpx.Response:
        head = json.dumps({"inputs": [given], "parameters": parameters}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return http.post("/v2/models/shapes/infer", content=head + data, headers=headers)

    raw = http.post("/v1/predict", content=png, params=ALL)
    form = http.post("/v1/models/shapes/predict", files={"image": ("a.png", png)}, params=ALL)
    in_json = infer({**base, "data": image.ravel().tolist()})
    half_binary = infer(behind, image.tobytes())
    in_binary = infer(behind, image.tobytes(), binary_data_output=True)
    native = client.predict(image=tmp_path / "a.png", top_k=3)

    start = int(in_binary.headers["inference-header-content-length"])
    exact = np.frombuffer(in_binary.content[start:], "<f4")
    assert len(exact) == 3
    for answer in (in_json, half_binary):
        found = np.array(answer.json()["outputs"][0]["data"], dtype=np.float32)
        assert found.tobytes() == exact.tobytes()
    printed = [float(f"{value:.7g}") for value in exact.tolist()]
    for content in (raw.json(), form.json(), native):
        (prediction,) = content["predictions"]
        assert by_index(prediction) == printed
        assert content["model"] == {"name": "shapes", "version": "1", "provider": "CPUExecutionProvider"}
    for response in (raw, form, in_json, in_binary, half_binary):
        assert response.headers["x-stride-version"] == "1"
        assert response.headers["x-stride-provider"] == "CPUExecutionProvider"
    for content in (in_json.json(), json.loads(in_binary.content[:start])):
        assert (content["model_name"], content["model_version"]) == ("shapes", "1")


def test_bentomls_client_sends_one_file_or_many_and_names_the_model(
    client: Any, tiny: Any, make_image: Images, files: list[Path]
) -> None:
    one = client.predict(image=files[0])
    many = client.predict(files, top_k=1, model="shapes")
    wanted = tiny(1).probabilities(np.stack([make_image(number) for number in range(3)])).argmax(axis=1).tolist()
    assert [prediction["index"] for prediction in one["predictions"]] == wanted[:1]
    assert [prediction["index"] for prediction in many["predictions"]] == wanted
    assert all(len(prediction["top"]) == 1 for prediction in many["predictions"])


def test_bentomls_asynchronous_client_works_too(http: httpx.Client, files: list[Path]) -> None:
    async def ask() -> Any:
        async with AsyncHTTPClient(str(http.base_url)) as client:
            answer = await client.predict(image=files, top_k=2)
            client._temp_dir.cleanup()
            return answer

    assert len(asyncio.run(ask())["predictions"]) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        ({"top_k": 9}, 422, "invalid_request"),
        ({"top_k": 1.5}, 422, "invalid_request"),
        ({"top_k": [1]}, 422, "invalid_request"),
        ({"model": "nobody"}, 404, "not_found"),
        ({"model": {"name": "shapes"}}, 422, "invalid_request"),
        ({"image": Path(__file__)}, 415, "not_an_image"),
        ({"image": "http://127.0.0.1:9/a.png"}, 415, "not_an_image"),  # it is not fetched
        ({"image": []}, 400, "undecodable_image"),  # an empty list is sent as no form at all
    ],
)
def test_what_is_wrong_reaches_bentomls_client_as_one_problem_and_no_traceback(
    client: Any, files: list[Path], arguments: dict[str, Any], status: int, code: str
) -> None:
    with pytest.raises(BentoMLException) as raised:
        client.predict(**{"image": files[0], **arguments})
    problem = json.loads(str(raised.value))
    assert (problem["status"], problem["code"]) == (status, code)


def test_the_form_may_be_written_by_hand_and_what_stands_beside_it_is_refused(
    http: httpx.Client, make_image: Images
) -> None:
    part = {"image": ("a.png", encode_png(make_image(1)))}
    answer = http.post("/predict", files=part, data={"model": "shapes", "top_k": "2"})
    assert len(answer.json()["predictions"][0]["top"]) == 2
    assert http.post("/predict", files=part, data={"model": "", "top_k": "null"}).status_code == 200
    assert http.post("/predict", content=part["image"][1]).status_code == 200
    for wrong in ({"data": {"top_k": ["1", "2"]}}, {"data": {"other": "1"}}, {"params": ALL}):
        refused = http.post("/predict", files=part, **wrong)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    for media in ("application/vnd.bentoml+pickle", "application/json"):
        refused = http.post("/predict", content=b"\x80\x04N.", headers={"content-type": media})
        assert (refused.status_code, refused.json()["code"]) == (415, "not_an_image")
    assert http.get("/predict").status_code == 405


def test_the_first_request_of_a_process_is_not_read_by_bentoml_and_a_call_in_python_is_the_same(
    tiny: Any, make_image: Images, tmp_path: Path
) -> None:
    """In a process of its own, on the application that BentoML makes of the service."""
    from services.inference.store import Served, Store

    known = tiny(1).bundle(tmp_path / "bundle")
    Store(tmp_path / "serving").install("shapes", known.digest, lambda _: known.path)
    Store(tmp_path / "serving").remember(Served("shapes", "1", known.digest, 1))
    (tmp_path / "a.png").write_bytes(encode_png(make_image(3)))
    script = f"""
import asyncio, httpx, json
from pathlib import Path
from services.inference.service import Inference
host = Inference.to_asgi()
async def main():
    async with host.router.lifespan_context(host):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=host), base_url="http://x") as client:
            first = await client.post("/predict", content=b"not an image")
            png = Path({str(tmp_path / "a.png")!r})
            over_http = (await client.post("/predict", files={{"image": png.read_bytes()}})).json()
        in_python = await Inference.inner().predict.local([png])
        print(json.dumps([first.status_code, first.json()["code"], over_http == in_python]))
asyncio.run(main())
"""
    env = {
        **os.environ,
        "STRIDE_DEVICE": "cpu",
        "STRIDE_HOME": str(tmp_path),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    ended = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert json.loads(ended.stdout.splitlines()[-1]) == [415, "not_an_image", True], ended.stderr
