"""services.inference.prediction_log: what a line holds, and that a full disk or a full queue costs lines alone."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png
from services.inference import prediction_log
from services.inference.prediction_log import PredictionLog

MODEL = SimpleNamespace(name="shapes", version="3", labels=("circle", "square", "triangle"))
IMAGES = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
ANSWERS = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], dtype=np.float32)


class Counts:
    def __init__(self) -> None:
        self.written = 0
        self.dropped: Counter[str] = Counter()

    def made(self, directory: Path, **options: Any) -> PredictionLog:
        given: dict[str, Any] = {"sample": 1.0, "pixels": False, "max_bytes": 1024**2, **options}
        return PredictionLog(directory, **given, written=self._write, dropped=self._drop)

    def _write(self, lines: int) -> None:
        self.written += lines

    def _drop(self, reason: str, lines: int) -> None:
        self.dropped[reason] += lines


def lines(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(directory.glob("predictions-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def offer(log: PredictionLog, sent: list[bytes] | None = None) -> None:
    log.offer(MODEL, [b"first", b"second"] if sent is None else sent, IMAGES, ANSWERS, 0.0123456789)


def test_a_line_an_image_and_no_pixels(tmp_path: Path) -> None:
    counts = Counts()
    log = counts.made(tmp_path / "log")
    offer(log)
    log.close()
    first, second = lines(tmp_path / "log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first.pop("time"))
    assert first == {
        "request_id": "",
        "model": "shapes",
        "version": "3",
        "image": 0,
        "sha256": sha256(b"first").hexdigest(),
        "label": "square",
        "probability": 0.7,
        "top": [
            {"label": "square", "probability": 0.7},
            {"label": "triangle", "probability": 0.2},
            {"label": "circle", "probability": 0.1},
        ],
        "seconds": 0.012346,
    }
    assert (second["image"], second["label"]) == (1, "circle")
    assert counts.written == 2
    (path,) = (tmp_path / "log").iterdir()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_pixels_are_kept_where_they_are_asked_for_as_the_model_saw_them(tmp_path: Path) -> None:
    log = Counts().made(tmp_path, pixels=True)
    offer(log, sent=[])
    log.close()
    for index, line in enumerate(lines(tmp_path)):
        assert base64.b64decode(line["png"]) == encode_png(IMAGES[index])
        assert line["sha256"] == sha256(IMAGES[index].tobytes()).hexdigest()


def test_the_sample_is_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    counts = Counts()
    log = counts.made(tmp_path, sample=0.2)
    for _ in range(1000):
        offer(log)
        while len(log._outbox) > 200:
            time.sleep(0.01)
    log.close(10)
    assert 2 * 130 < counts.written < 2 * 270
    none = counts.made(tmp_path / "none", sample=0.0)
    offer(none)
    none.close()
    assert lines(tmp_path / "none") == []


def test_files_are_rotated_and_the_oldest_removed(tmp_path: Path) -> None:
    counts = Counts()
    log = counts.made(tmp_path, max_bytes=80_000)
    for _ in range(400):  # some 300 kB
        offer(log)
        while len(log._outbox) > 32:
            time.sleep(0.01)
    log.close(10)
    files = sorted(tmp_path.iterdir())
    assert counts.written == 800
    assert 4 <= len(files) <= 8
    assert sum(path.stat().st_size for path in files) <= 80_000 + 64 * 1024
    assert all(line["model"] == "shapes" for line in lines(tmp_path))


def test_a_file_that_another_worker_removed_is_begun_anew(tmp_path: Path) -> None:
    counts = Counts()
    log = counts.made(tmp_path)
    offer(log)
    until(lambda: counts.written == 2)
    (path,) = tmp_path.iterdir()
    path.unlink()
    offer(log)
    log.close()
    assert len(lines(tmp_path)) == 2


def test_what_the_writer_cannot_keep_up_with_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, go = Counts(), threading.Event()
    drain = PredictionLog._drain

    def slow(log: PredictionLog, waiting: Iterator[Any]) -> None:
        go.wait(20)
        drain(log, waiting)

    monkeypatch.setattr(PredictionLog, "_drain", slow)
    log = counts.made(tmp_path)
    for _ in range(2000):
        offer(log)
    assert counts.dropped == {"queue_full": 2 * (2000 - 1024)}
    go.set()
    log.close(20)
    assert counts.written == 2 * 1024
    monkeypatch.setattr(prediction_log, "_QUEUE_BYTES", 10_000)
    go.clear()
    log = counts.made(tmp_path)
    offer(log, sent=[b"", b"x" * 11_000])
    assert counts.dropped["queue_full"] == 2 * (2000 - 1024) + 2
    go.set()
    log.close(20)


FULL = """
import resource, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from services.inference import prediction_log
prediction_log._RETRY_S = 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # the disk is full at 4 kB a file
lost, kept = [], []
log = prediction_log.PredictionLog(Path(sys.argv[1]), sample=1, pixels=False, max_bytes=2**20,
    written=kept.append, dropped=lambda reason, lines: lost.append((reason, lines)))
model = SimpleNamespace(name="m", version="1", labels=("a", "b"))
for _ in range(20):
    log.offer(model, [b"x"] * 7, np.zeros((7, 2, 2, 1), np.uint8), np.full((7, 2), 0.5, np.float32), 0.1)
    time.sleep(0.02)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # there is room again
while len(log._outbox):
    time.sleep(0.01)
log.offer(model, [b"last"], np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2), 0.5, np.float32), 0.1)
log.close(10)
print(sum(kept), {reason for reason, _ in lost}, sum(kept) + sum(lines for _, lines in lost))
"""


def test_a_full_disk_loses_lines_leaves_no_half_one_and_goes_on_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    written, reasons, told = re.fullmatch(r"(\d+) (.*) (\d+)\n", ended.stdout).groups()  # type: ignore[union-attr]
    found = lines(tmp_path)  # each of them whole
    assert len(found) == int(written)
    assert found[-1]["sha256"] == sha256(b"last").hexdigest()
    assert (reasons, int(told)) == ("{'not_written'}", 20 * 7 + 1)


def test_a_service_logs_its_sample_with_the_ids_of_the_request(
    start_service: Callable[..., Any], tiny: Any, make_image: Callable[[int], NDArray[np.uint8]], tmp_path: Path
) -> None:
    directory = tmp_path / "log"
    service = start_service(
        stored={"shapes": tiny(1).bundle(tmp_path / "b")},
        STRIDE_PREDICTION_LOG=str(directory),
        STRIDE_PREDICTION_LOG_SAMPLE="1",
    )
    service.wait()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "mine-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    sent = encode_png(make_image(5))
    answer = httpx.post(f"{service.url}/v1/predict", content=sent, headers=headers).json()
    files = [("image", (f"{k}.png", encode_png(make_image(k)))) for k in range(3)]
    httpx.post(f"{service.url}/v1/predict", files=files)
    assert httpx.post(f"{service.url}/v1/predict", content=b"text").status_code == 415
    until(lambda: len(lines(directory)) == 4)
    first, *others = lines(directory)
    assert (first["request_id"], first["trace_id"], first["version"]) == ("mine-1", trace, "1")
    assert first["sha256"] == sha256(sent).hexdigest()
    assert first["label"] == answer["predictions"][0]["label"]
    assert first["probability"] == pytest.approx(answer["predictions"][0]["probability"], rel=1e-6)
    assert [line["image"] for line in others] == [0, 1, 2]
    assert len({line["request_id"] for line in others}) == 1
    assert "stride_prediction_log_lines_total 4.0" in httpx.get(f"{service.url}/metrics").text


def test_a_directory_that_cannot_be_made_fails_no_request_and_is_told_at_the_start(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    service = start_service(
        stored={"shapes": tiny(1).bundle(tmp_path / "b")},
        STRIDE_PREDICTION_LOG=str(tmp_path / "file" / "log"),
        STRIDE_PREDICTION_LOG_SAMPLE="1",
    )
    service.wait()
    until(lambda: "prediction_log_failed" in service.log.read_text())
    png = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
    for _ in range(5):
        assert httpx.post(f"{service.url}/v1/predict", content=png).status_code == 200
    dropped = 'stride_prediction_log_dropped_total{reason="not_written"} 5.0'
    until(lambda: dropped in httpx.get(f"{service.url}/metrics").text)
    assert service.log.read_text().count("prediction_log_failed") == 1
    assert not os.path.lexists(tmp_path / "file" / "log")


def until(met: Callable[[], bool], timeout_s: float = 30) -> None:
    ends = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < ends
        time.sleep(0.05)
