"""What the disk has of a journal, and when: while a fit appends, while its server hangs, and at the end."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contracts.recipe import Recipe
from services.training import journal_flusher, tracking
from services.training.journal import Journal
from services.training.journal_flusher import Flusher
from services.training.journal_sender import Sender

RUN = "f" * 32


def reached(condition: Callable[[], bool], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def opened(home: Path) -> Iterator[Journal]:
    made = Journal.open(RUN)
    yield made
    made.close()


@pytest.fixture
def flusher(opened: Journal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flusher]:
    monkeypatch.setattr(journal_flusher, "PACE_S", 0.05)
    made = Flusher(opened)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is flushed, as the system is asked: (name of the thread, name of the file)."""
    seen: list[tuple[str, str]] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            seen.append((threading.current_thread().name, path.name))
            real(descriptor)

        monkeypatch.setattr(os, name, call)

    watch("fsync")
    watch("fdatasync")
    return seen


def test_what_is_appended_is_soon_on_the_disk_and_the_fits_thread_never_flushes(
    opened: Journal, flusher: Flusher, flushed: list[tuple[str, str]]
) -> None:
    for number in range(20):
        opened.append("tags", {"values": {"number": str(number)}})
        flusher.wake()
    assert reached(lambda: opened.flushed == 20)
    assert ("stride-journal-disk", "journal.jsonl") in flushed
    assert threading.current_thread().name not in {thread for thread, _ in flushed}


def test_a_file_is_on_the_disk_before_the_entry_that_names_it(opened: Journal, flushed: list[tuple[str, str]]) -> None:
    opened.append("artifact", {"path": "a", "spool": opened.spool("picture.png", b"content")})
    opened.flush()
    names = [name for _, name in flushed]
    assert names.index("picture.png") < names.index("spool") < names.index("journal.jsonl")
    flushed.clear()
    opened.flush()
    assert flushed == []  # nothing is new


def test_a_file_that_was_sent_in_the_meantime_is_no_error(opened: Journal) -> None:
    opened.append("artifact", {"path": "a", "spool": opened.spool("a", b"content")})
    opened.acknowledge(opened.unsent(), {})
    opened.flush()
    assert opened.flushed == 1


def test_a_server_that_hangs_does_not_keep_the_disk_from_having_it(
    opened: Journal, flusher: Flusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sender = Sender(MlflowClient(uri), uri, opened)
        sender.start()
        opened.append("tags", {"values": {"a": "b"}})
        sender.wake()
        with silent.accept()[0]:  # the sender has asked, and waits
            opened.append("tags", {"values": {"c": "d"}})
            flusher.wake()
            assert reached(lambda: opened.flushed == 2)
            assert opened.acknowledged == 0
            sender.stop()


def test_a_closed_journal_is_on_the_disk(home: Path, flushed: list[tuple[str, str]]) -> None:
    with Journal.open(RUN) as opened:
        opened.append("tags", {"values": {"a": "b"}})
        flushed.clear()
    assert [name for _, name in flushed] == ["journal.jsonl"]


def test_a_disk_that_does_not_take_it_is_warned_of_once_and_tried_again(
    opened: Journal, flusher: Flusher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [OSError(5, "Input/output error")] * 3
    real = os.fdatasync

    def failing(descriptor: int) -> None:
        if left:
            raise left.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    with caplog.at_level(logging.WARNING):
        opened.append("tags", {"values": {"a": "b"}})
        flusher.wake()
        assert reached(lambda: opened.flushed == 1)
    assert caplog.text.count("the disk does not hold its journal yet (Input/output error)") == 1


def test_a_run_flushes_while_it_goes_on(
    embedded_tracking: str, tiny_recipe: Recipe, flushed: list[tuple[str, str]]
) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.epoch(1, {"train/loss": 0.5})
        assert reached(lambda: ("stride-journal-disk", "journal.jsonl") in flushed)
