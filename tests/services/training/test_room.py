from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import RecipeError
from services.training import room
from services.training.room import free_memory, resident_limit


@pytest.mark.parametrize(
    ("given", "limit"), [("0", 0), ("8GB", 8 * 10**9), ("512MiB", 2**29), ("1.5 gib", 3 * 2**29), ("100", 100)]
)
def test_a_size_is_read(given: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_RESIDENT", given)
    assert resident_limit("cpu") == limit


@pytest.mark.parametrize("given", ["much", "-1", "8 TB", "GB", "1,5GB"])
def test_what_is_no_size_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_RESIDENT", given)
    with pytest.raises(RecipeError, match=r"STRIDE_RESIDENT is .*; set it to auto or a size such as 8GB"):
        resident_limit("cpu")


def test_half_of_what_is_free_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       100 kB\nMemAvailable:    64 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    assert free_memory("cpu") == 64 * 1024
    assert resident_limit("cpu") == 32 * 1024


@pytest.mark.parametrize(("limit", "free"), [("50000\n", 50000 - 20000 + 4000), ("max\n", 64 * 1024)])
def test_a_container_s_limit_counts(limit: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:    64 kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("20000\n")
    (tmp_path / "memory.stat").write_text("anon 16000\ninactive_file 4000\n")
    monkeypatch.setattr(room, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_CGROUP", tmp_path)
    assert free_memory("cpu") == free
