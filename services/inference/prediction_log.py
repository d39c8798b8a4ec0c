"""The prediction log: a sample of what was answered, as lines of JSON in a directory, for audits and for later labels.

    predictions-20260131T120000-4711-0.jsonl      one file a worker; a new one at an eighth of the whole size
    {"time", "request_id", "trace_id", "model", "version", "image", "sha256", "label", "probability", "top", "seconds"}

One line an image; `image` is its place in the request, `sha256` that of its bytes as they were sent. Pixels are left
out unless they are asked for: then `png` holds the image as the model saw it, in base64. It is written by a thread of
its own behind a bounded queue. What cannot be written, because the queue or the disk is full, is counted and lost; no
request waits for it or fails. The oldest files are removed when all of them together pass the limit.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.images import encode_png
from services.inference import logs
from services.inference.outbox import Outbox

Reason = Literal["queue_full", "not_written"]

_QUEUE: Final = 1024
_QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Requests, and bytes of their images, that wait for the writer; what comes beyond either is dropped."""
_PAUSE_S: Final = 0.25
"""How long lines gather before they are written."""
_RETRY_S: Final = 5.0
"""After a failure nothing is tried for that long: a full disk would be asked for every line."""
_FILES: Final = 8
_TOP: Final = 5
"""Classes of an answer that are named."""


class Answering(Protocol):
    """What the log tells of the model that answered."""

    name: str
    version: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Predicted:
    """One answered request."""

    at: float
    request_id: str
    trace_id: str
    model: Answering
    sent: list[bytes]
    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    seconds: float


class PredictionLog:
    """`offer` belongs to the event loop and never waits; everything else happens in the outbox's thread.

    Args:
        directory: is made when it is not there.
        sample: the part of the requests that is logged, 0 to 1.
        pixels: log the images too.
        max_bytes: of all files together.
        written: is told of lines written; `dropped` of lines lost, and why.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sample: float,
        pixels: bool,
        max_bytes: int,
        written: Callable[[int], None] = lambda _: None,
        dropped: Callable[[Reason, int], None] = lambda _, __: None,
    ) -> None:
        self._directory = directory
        self._sample = sample
        self._pixels = pixels
        self._max_bytes = max_bytes
        self._written = written
        self._dropped = dropped
        self._file: int | None = None
        self._size = 0
        self._number = 0
        self._retry_at = 0.0
        self._outbox: Outbox[_Predicted] = Outbox(
            "prediction-log",
            self._drain,
            most=_QUEUE,
            most_bytes=_QUEUE_BYTES,
            pause_s=_PAUSE_S,
            soon=_QUEUE // 2,
            begin=self._make,
            end=self._leave,
        )

    def offer(
        self,
        model: Answering,
        sent: list[bytes],
        images: NDArray[np.uint8],
        probabilities: NDArray[np.float32],
        seconds: float,
    ) -> None:
        """Log an answered request, if it is one of the sample; its ids are taken from the context.

        Args:
            sent: each image's bytes as they came in; empty where pixels were sent, not files.
            images: uint8, (n, height, width, channels), as the model saw them.
            probabilities: float32, (n, classes).
            seconds: from the whole body to the answer.
        """
        if random.random() >= self._sample:
            return
        ids = logs.request_id.get(), logs.trace_id.get()
        predicted = _Predicted(time.time(), *ids, model, sent, images, probabilities, seconds)
        if not self._outbox.put(predicted, images.nbytes + sum(map(len, sent))):
            self._dropped("queue_full", len(images))

    def close(self, within_s: float = 1.0) -> None:
        """Write what is left, as far as that goes in the time."""
        self._outbox.close(within_s)

    def _make(self) -> None:
        try:  # a directory that cannot be had is told of at the start
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            self._failed(error)

    def _drain(self, waiting: Iterator[_Predicted]) -> None:
        lines: list[bytes] = []
        size = 0
        # Some at a time: so that a file ends where it should, and images are not held for long.
        for predicted in waiting:
            new = self._lines(predicted)
            lines += new
            size += sum(map(len, new))
            if size >= min(self._max_bytes // _FILES, 64 * 1024):
                break
        if time.monotonic() < self._retry_at:
            self._dropped("not_written", len(lines))
            return
        try:
            self._append(b"".join(lines))
        except OSError as error:
            self._dropped("not_written", len(lines))
            self._failed(error)
            self._leave()  # the next line must not be joined to half a one
        else:
            if self._retry_at:
                logs.info("prediction_log_goes_on", directory=str(self._directory))
            self._retry_at = 0.0
            self._written(len(lines))

    def _failed(self, error: OSError) -> None:
        if not self._retry_at:
            reason = error.strerror or str(error)
            logs.warning("prediction_log_failed", directory=str(self._directory), reason=reason)
        self._retry_at = time.monotonic() + _RETRY_S

    def _lines(self, predicted: _Predicted) -> list[bytes]:
        when = datetime.fromtimestamp(predicted.at, UTC).isoformat(timespec="milliseconds")
        about: dict[str, Any] = {"time": when, "request_id": predicted.request_id}
        if predicted.trace_id:
            about["trace_id"] = predicted.trace_id
        model = predicted.model
        about |= {"model": model.name, "version": model.version}
        lines = []
        for index, row in enumerate(predicted.probabilities):
            if not np.isfinite(row).all():  # the request failed for it, and JSON could not say it
                continue
            image = predicted.images[index]
            data = predicted.sent[index] if predicted.sent else image.tobytes()
            best = np.argsort(-row, kind="stable")[:_TOP]
            top = [{"label": model.labels[i], "probability": float(f"{row[i]:.7g}")} for i in best]
            line = {**about, "image": index, "sha256": sha256(data).hexdigest(), **top[0], "top": top}
            line["seconds"] = round(predicted.seconds, 6)
            if self._pixels:
                line["png"] = base64.b64encode(encode_png(image)).decode()
            lines.append(json.dumps(line).encode() + b"\n")
        return lines

    def _append(self, data: bytes) -> None:
        if self._file is not None:
            full = self._size >= self._max_bytes // _FILES
            # Another worker may have removed it as the oldest.
            if full or os.fstat(self._file).st_nlink == 0:
                self._leave()
        file = self._begin() if self._file is None else self._file
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(file, view) :]
        except OSError:
            os.ftruncate(file, self._size)
            raise
        self._size += len(data)

    def _begin(self) -> int:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._prune()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path = self._directory / f"predictions-{stamp}-{os.getpid()}-{self._number}.jsonl"
        self._number += 1
        self._file = file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(file).st_size
        return file

    def _leave(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _prune(self) -> None:
        """Remove the oldest files, so that a new one has its room."""
        sizes = {}
        for path in self._directory.glob("predictions-*.jsonl"):
            try:
                sizes[path] = path.stat().st_size
            except FileNotFoundError:  # another worker was faster
                continue
        total = sum(sizes.values()) + self._max_bytes // _FILES
        for path in sorted(sizes):
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path]
