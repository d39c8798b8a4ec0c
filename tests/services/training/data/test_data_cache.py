"""The cache gives back what was stored, or builds it again."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from contracts import images
from services.training.data.cache import Arrays, key_of, remember


class Builder:
    """Counts how often it was asked."""

    def __init__(self, value: int = 1) -> None:
        self.calls = 0
        self.value = value

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"images": np.full((3, 4), self.value, dtype=np.uint8), "labels": np.arange(3)}


def test_what_was_built_once_is_not_built_again(tmp_path: Path) -> None:
    build = Builder()
    first = remember(tmp_path / "deep" / "a.arrays", "key", build)
    again = remember(tmp_path / "deep" / "a.arrays", "key", build)
    assert build.calls == 1
    assert sorted(again) == ["images", "labels"]
    np.testing.assert_array_equal(first["images"], again["images"])
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["a.arrays"]


def test_another_key_replaces_the_entry_in_its_place(tmp_path: Path) -> None:
    remember(tmp_path / "a.arrays", "old", Builder(1))
    assert remember(tmp_path / "a.arrays", "new", Builder(2))["images"].max() == 2
    assert remember(tmp_path / "a.arrays", "new", Builder(3))["images"].max() == 2


def test_other_decoding_code_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of("photos")
    changed = tmp_path / "images.py"
    changed.write_text(Path(images.__file__).read_text() + "# it decodes in another way\n")
    monkeypatch.setattr(images, "__file__", str(changed))
    assert key_of("photos") != before


def test_a_flip_of_any_byte_is_noticed_or_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.arrays"
    remember(path, "key", Builder())
    good = path.read_bytes()
    expected = Builder()()
    caplog.set_level(logging.CRITICAL)
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        found = remember(path, "key", Builder())
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("data", [b"", b"not a zip", b"\n\n", b"0\n{}\n", b"\x80\x04\x95pickle"])
def test_a_file_that_is_no_cache_is_built_again_with_a_warning(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.arrays"
    path.write_bytes(data)
    build = Builder()
    remember(path, "key", build)
    remember(path, "key", build)
    assert build.calls == 1
    assert "cannot be used" in caplog.text


def test_a_truncated_file_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / "a.arrays"
    remember(path, "key", Builder())
    path.write_bytes(path.read_bytes()[:-40])
    build = Builder(5)
    assert remember(path, "key", build)["images"].max() == 5


def test_a_cache_that_cannot_be_written_costs_a_warning_and_not_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file where the directory should be")
    assert remember(tmp_path / "file" / "a.arrays", "key", Builder(4))["images"].max() == 4
    assert "could not be written" in caplog.text


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Arrays:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        remember(tmp_path / "a.arrays", "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_keys_differ_with_their_parts() -> None:
    assert len({key_of("a", "b"), key_of("ab"), key_of(["a", "b"]), key_of("a", 1)}) == 4
