from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.training import journal_entry
from services.training.journal_entry import Entry, decode, encode, read, recover


def written(path: Path, count: int) -> list[bytes]:
    lines = [encode(number, "tags", {"values": {"a": "ä" * number}}) for number in range(1, count + 1)]
    path.write_bytes(b"".join(lines))
    return lines


def test_a_line_is_json_with_a_checksum_and_comes_back_as_it_was() -> None:
    content = {"metrics": [["train/loss", 0.1 + 0.2, 1_700_000_000_000, 3], ["x", "nan", 1, 0]]}
    line = encode(7, "metrics", content)
    assert json.loads(line)["sequence"] == 7
    entry = decode(line, end=99)
    assert entry is not None
    assert (entry.sequence, entry.kind, entry.content, entry.end) == (7, "metrics", content, 99)


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_line_with_one_wrong_byte_is_no_entry(at: int) -> None:
    line = bytearray(encode(1, "tags", {"values": {"key": "value"}}))
    line[at] ^= 1
    assert decode(bytes(line)) is None


def test_a_line_that_was_cut_at_any_byte_is_no_entry() -> None:
    line = encode(1, "tags", {"values": {"key": "}"}})
    assert [cut for cut in range(len(line)) if decode(line[:cut]) is not None] == []


def test_nan_is_refused_before_it_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(1, "metrics", {"metrics": [["x", float("nan"), 1, 1]]})


def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path, 3)
    whole = len(lines[0]) + len(lines[1])
    path.write_bytes(path.read_bytes()[: whole + 20])
    assert [entry.sequence for entry in read(path)] == [1, 2]
    assert recover(path) == (2, whole)
    assert path.stat().st_size == whole
    assert "was cut off while it was written, and is dropped" in caplog.text


def test_an_entry_that_is_written_while_it_is_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may see the first page of a write before the second, and what is passed over would count as sent."""
    path = tmp_path / "journal.jsonl"
    first, second, third = (encode(number, "tags", {"values": {"a": "b"}}) for number in (1, 2, 3))
    path.write_bytes(first + second[:20])

    def write_the_rest() -> None:
        with path.open("ab") as file:
            file.write(second[20:] + third)

    def decode_while_it_is_written(line: bytes, end: int = 0) -> Entry | None:
        if line == second[:20]:
            write_the_rest()
        return decode(line, end)

    monkeypatch.setattr(journal_entry, "decode", decode_while_it_is_written)
    assert [entry.sequence for entry in read(path)] == [1]
    write_the_rest()
    assert [entry.sequence for entry in read(path, len(first))] == [2, 3]


def test_a_damaged_line_in_the_middle_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    lines = written(path, 3)
    lines[1] = b"\0" * (len(lines[1]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    assert recover(path) == (3, path.stat().st_size)
    assert [entry.sequence for entry in read(path)] == [1, 3]
    assert "lines 2 are damaged" in caplog.text


def test_reading_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path, 5)
    third = list(read(path))[2]
    assert [entry.sequence for entry in read(path, third.end)] == [4, 5]


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert list(read(tmp_path / "none")) == []
    assert recover(tmp_path / "none") == (0, 0)
