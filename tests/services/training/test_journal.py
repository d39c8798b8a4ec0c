from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from contracts.errors import FitError
from services.training import journal
from services.training.journal import Journal
from services.training.journal_lock import Busy

RUN = "f" * 32


def tag(number: int) -> dict[str, dict[str, str]]:
    return {"values": {"number": str(number)}}


def numbers(opened: Journal) -> list[int]:
    return [entry.sequence for entry in opened.unsent()]


def test_what_was_appended_is_unsent_until_it_is_acknowledged(home: Path) -> None:
    with Journal.open(RUN) as opened:
        for number in range(5):
            opened.append("tags", tag(number))
        first = opened.unsent()
        assert [entry.content for entry in first] == [tag(number) for number in range(5)]
        opened.acknowledge(first[:3], {})
        assert numbers(opened) == [4, 5]
        opened.acknowledge(first[3:], {})
        assert opened.drained
        assert numbers(opened) == []


def test_it_goes_on_where_another_process_has_left_it(home: Path) -> None:
    with Journal.open(RUN) as opened:
        for number in range(3):
            opened.append("tags", tag(number))
        opened.acknowledge(opened.unsent()[:2], {})
    with Journal.open(RUN, create=False) as again:
        assert numbers(again) == [3]
        again.append("tags", tag(3))
        assert numbers(again) == [3, 4]
        assert [entry.sequence for entry in again.entries()] == [1, 2, 3, 4]


def test_without_its_state_everything_is_sent_again(home: Path) -> None:
    with Journal.open(RUN) as opened:
        opened.append("tags", tag(0))
        opened.acknowledge(opened.unsent(), {})
    (opened.path / "state.json").write_text("{")
    with Journal.open(RUN) as again:
        assert numbers(again) == [1]


def test_lines_that_a_power_failure_took_are_not_counted_as_sent(home: Path) -> None:
    with Journal.open(RUN) as opened:
        for number in range(4):
            opened.append("tags", tag(number))
        opened.acknowledge(opened.unsent(), {})
        lines = opened.path / "journal.jsonl"
    os.truncate(lines, lines.stat().st_size // 2)
    with Journal.open(RUN) as again:
        again.append("tags", tag(9))
        assert [(entry.sequence, entry.content) for entry in again.unsent()] == [(5, tag(9))]


def test_no_more_than_some_hundred_entries_are_in_memory_at_once(home: Path) -> None:
    with Journal.open(RUN) as opened:
        for number in range(1200):
            opened.append("tags", tag(number))
        seen = []
        while not opened.drained:
            entries = opened.unsent()
            assert len(entries) <= 500
            seen += [entry.sequence for entry in entries]
            opened.acknowledge(entries, {})
    assert seen == list(range(1, 1201))


def test_several_threads_may_append_while_one_acknowledges(home: Path) -> None:
    with Journal.open(RUN) as opened:

        def write() -> None:
            for number in range(200):
                opened.append("tags", tag(number))

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        seen: list[int] = []
        deadline = time.monotonic() + 60
        while len(seen) < 800:
            assert time.monotonic() < deadline
            if entries := opened.unsent():
                seen += [entry.sequence for entry in entries]
                opened.acknowledge(entries, {})
        for thread in threads:
            thread.join()
    assert seen == list(range(1, 801))


def test_the_file_of_an_entry_is_kept_until_it_is_acknowledged(home: Path) -> None:
    with Journal.open(RUN) as opened:
        opened.append("artifact", {"path": "a/b.txt", "spool": opened.spool("b.txt", b"content")})
        (entry,) = opened.unsent()
        path = opened.spooled(entry)
        assert (path.name, path.read_bytes()) == ("b.txt", b"content")
    with Journal.open(RUN) as again:
        assert again.spooled(entry).read_bytes() == b"content"
        again.acknowledge([entry], {})
        assert not path.exists()


def test_the_file_of_a_refused_entry_stays_until_it_is_taken(home: Path) -> None:
    with Journal.open(RUN) as opened:
        opened.append("artifact", {"path": "a", "spool": opened.spool("a", b"content")})
        (entry,) = opened.unsent()
        opened.acknowledge([entry], {entry.sequence: "too large"})
        assert opened.drained
    with Journal.open(RUN) as again:
        assert again.refused == {1: "too large"}
        assert again.spooled(entry).read_bytes() == b"content"
        again.acknowledge([entry], {})
        assert again.refused == {}
    with Journal.open(RUN) as again:
        assert again.refused == {}


@pytest.mark.parametrize(("content", "problem"), [(None, "is missing"), (b"contenT", "is damaged"), (b"", "damaged")])
def test_a_file_that_is_not_as_it_was_is_told(home: Path, content: bytes | None, problem: str) -> None:
    with Journal.open(RUN) as opened:
        opened.append("artifact", {"path": "a", "spool": opened.spool("a", b"content")})
        (entry,) = opened.unsent()
        path = opened.spooled(entry)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=problem):
            opened.spooled(entry)


def test_a_file_whose_entry_was_not_written_any_more_is_removed(home: Path) -> None:
    with Journal.open(RUN) as opened:
        opened.spool("lost", b"x" * 1000)
        opened.append("artifact", {"path": "a", "spool": opened.spool("kept", b"content")})
    Journal.open(RUN).close()
    assert [path.name for path in home.rglob("spool/*/*")] == ["kept"]


def test_two_do_not_have_it_at_once(home: Path) -> None:
    with Journal.open(RUN), pytest.raises(Busy):
        Journal.open(RUN)


def test_a_deleted_one_is_gone_and_can_be_made_anew(home: Path) -> None:
    opened = Journal.open(RUN)
    opened.append("tags", tag(0))
    opened.delete()
    assert journal.directories() == []
    assert list(journal.root().iterdir()) == []
    with pytest.raises(FileNotFoundError):
        Journal.open(RUN, create=False)
    with Journal.open(RUN) as again:
        assert again.last == 0


def test_what_a_kill_has_left_of_a_deleted_one_is_no_journal(home: Path) -> None:
    (journal.root() / f".gone-{RUN}" / "spool").mkdir(parents=True)
    assert journal.directories() == []
    assert list(journal.root().iterdir()) == []


@pytest.mark.parametrize("run_id", ["", ".", "..", "../x", "/etc", "a/b"])
def test_an_id_leads_to_no_other_directory(home: Path, run_id: str) -> None:
    with pytest.raises(FileNotFoundError):
        Journal.open(run_id)


def test_nobody_who_was_left_behind_writes_to_a_closed_one(home: Path) -> None:
    opened = Journal.open(RUN)
    opened.append("tags", tag(0))
    entries = opened.unsent()
    opened.close()
    opened.acknowledge(entries, {})
    with Journal.open(RUN) as again:
        assert numbers(again) == [1]


def test_kill_9_at_any_moment_leaves_every_entry_whose_append_returned(home: Path) -> None:
    code = (
        "import sys, itertools; from services.training.journal import Journal\n"
        "opened = Journal.open(sys.argv[1])\n"
        "for number in itertools.count(1):\n"
        "    opened.append('tags', {'values': {'x': 'y' * 300}})\n"
        "    sys.stdout.write(f'{number}\\n'); sys.stdout.flush()\n"
    )
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, f"run{attempt}"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(200 + 37 * attempt):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = process.stdout.read().split("\n")
        process.wait()
        process.stdout.close()
        with Journal.open(f"run{attempt}") as opened:
            found = [entry.sequence for entry in opened.entries()]
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= 200 + 37 * attempt
        assert len(found) >= max((int(line) for line in told[:-1] if line), default=0)


def test_a_full_disk_is_told_with_the_way_out_and_leaves_the_journal_whole(home: Path) -> None:
    code = (
        "import resource, sys; from services.training.journal import Journal\n"
        "from contracts.errors import FitError\n"
        "opened = Journal.open(sys.argv[1])\n"
        "opened.append('tags', {'values': {'a': 'b'}})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # what a full disk does, at 4,000 bytes a file\n"
        "for call in (lambda: opened.append('tags', {'values': {'a': 'b' * 9000}}),\n"
        "             lambda: opened.spool('weights', b'x' * 9000)):\n"
        "    try:\n"
        "        call()\n"
        "    except FitError as error:\n"
        "        print(error.message)\n"
        "opened.append('tags', {'values': {'c': 'd'}})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, RUN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 2
    for line in told:
        assert f"journal {journal.root() / RUN}: it cannot be written" in line
        assert "free some space or set STRIDE_HOME elsewhere" in line
    with Journal.open(RUN) as opened:
        assert [entry.content["values"] for entry in opened.entries()] == [{"a": "b"}, {"c": "d"}]
    assert list(home.rglob("weights")) == []


def test_a_home_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STRIDE_HOME", str(tmp_path / "file"))
    with pytest.raises(FitError, match=r"it cannot be written.*set STRIDE_HOME elsewhere"):
        Journal.open(RUN)


def test_appending_costs_next_to_nothing(home: Path) -> None:
    """A tenth of a millisecond is a thousandth of the shortest epochs (digits: 0.1 s); measured 0.03 ms."""
    content = {"metrics": [[f"train/metric{index}", 0.123456789 * index, 1_700_000_000_000, 1] for index in range(8)]}
    with Journal.open(RUN) as opened:
        started = time.thread_time()
        for _ in range(1000):
            opened.append("metrics", content)
        assert time.thread_time() - started < 0.3


def test_what_comes_after_the_end_is_refused_and_written_nowhere(home: Path, tmp_path: Path) -> None:
    """The number of a closed file may be that of another one by then: a data base, say."""
    journal = Journal.open("run1")
    journal.close()
    others = [(tmp_path / f"{number}").open("wb") for number in range(8)]
    with pytest.raises(FitError, match=r"run1: an entry 'tags' came after the run's end, none .* before the run ends"):
        journal.append("tags", {"values": {"a": "b"}})
    for other in others:
        other.close()
    assert [(tmp_path / f"{number}").read_bytes() for number in range(8)] == [b""] * 8
