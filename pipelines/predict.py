"""Predictions over HTTP, as any other client would ask for them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx

from contracts.errors import DataError, StrideError

PER_REQUEST: Final = 32
"""Images of one request; the server's own limit, STRIDE_MAX_PARTS, is 64 by default."""


class PredictError(StrideError):
    """The service cannot be reached, or failed to answer."""

    code = "prediction_failed"


class PredictRefusedError(PredictError):
    """The service refused what it was sent."""

    exit_code = 2


class Image(NamedTuple):
    """An image file's name and content."""

    name: str
    content: bytes


def read(paths: Sequence[Path]) -> list[Image]:
    """Read image files whole; what they hold is the server's to judge.

    Raises:
        DataError: a file that cannot be read.
    """
    images = []
    for path in paths:
        try:
            images.append(Image(str(path), path.read_bytes()))
        except OSError as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error.strerror}); give an image file.") from error
    return images


def predict(
    images: Sequence[Image], *, url: str, model: str | None = None, top_k: int | None = None, timeout_s: float = 30.0
) -> dict[str, Any]:
    """Ask an inference service for the classes of images, with the key in STRIDE_API_KEY where the service wants one.

    Returns:
        `model`: name, version and provider; `predictions`: for each image in order its `image` (the name), `label`,
        `index`, `probability` and `top`. Beyond `PER_REQUEST` images `model` is the one that answered last.

    Raises:
        PredictRefusedError: the service answered 4xx.
        PredictError: it cannot be reached, answered 5xx, or answered something else than predictions.
    """
    address = f"{url.rstrip('/')}/v1/predict" if model is None else f"{url.rstrip('/')}/v1/models/{model}/predict"
    answer: dict[str, Any] = {"model": None, "predictions": []}
    key = os.environ.get("STRIDE_API_KEY")
    headers = {"X-API-Key": key} if key else {}
    # A proxy of the environment is for other machines.
    with httpx.Client(timeout=timeout_s, headers=headers, trust_env=not _on_this_machine(url)) as client:
        for start in range(0, len(images), PER_REQUEST):
            part = images[start : start + PER_REQUEST]
            found = _ask(client, address, part, {} if top_k is None else {"top_k": str(top_k)})
            answer["model"] = found["model"]
            pairs = zip(part, found["predictions"], strict=True)
            answer["predictions"] += [{"image": image.name, **prediction} for image, prediction in pairs]
    return answer


def _ask(client: httpx.Client, address: str, images: Sequence[Image], query: dict[str, str]) -> dict[str, Any]:
    files = [("image", (Path(image.name).name, image.content, "application/octet-stream")) for image in images]
    try:
        response = client.post(address, params=query, files=files)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise PredictRefusedError(
            f"{address!r} is not an address ({error}); write it like http://127.0.0.1:3000."
        ) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise PredictError(f"no answer from {address} ({reason}); start the service with 'stride serve'.") from error
    if response.is_success:
        try:
            body: dict[str, Any] = response.json()
            if len(body["predictions"]) == len(images) and body["model"]:
                return body
        except (ValueError, KeyError, TypeError):
            pass  # told below, like any other answer that holds no predictions
        raise PredictError(f"{address} answered {response.status_code} without predictions; is it Stride's inference?")
    kind = PredictRefusedError if response.is_client_error and response.status_code != 429 else PredictError
    raise kind(f"{address} answered {response.status_code}: {_explanation(response)}")


def _explanation(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.reason_phrase
    for key in ("detail", "message", "error"):
        if isinstance(body, dict) and isinstance(body.get(key), str):
            return str(body[key])
    return response.reason_phrase


def _on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
