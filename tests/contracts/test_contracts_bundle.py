"""A bundle is whole and unchanged, or it is refused."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from contracts import bundle
from contracts.bundle import Golden, Manifest, Provenance
from contracts.errors import BundleError
from contracts.images import ImageSpec

FILES = {"model.onnx": b"a graph" * 100, "golden-0.png": b"an image"}


def _manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "digits",
        "labels": ("cat", "dog"),
        "input": ImageSpec(height=8, width=8, channels=1),
        "tolerance": 1e-4,
        "metrics": {"test/accuracy": 0.9},
        "provenance": Provenance(
            run_id="r",
            recipe="digits",
            recipe_hash="h",
            data_fingerprint="d",
            test_fingerprint="t",
            code_version="c",
            created_at="2026-01-01T00:00:00Z",
        ),
        "golden": (Golden(file="golden-0.png", probabilities=(0.25, 0.75)),),
        "files": {},
    }
    return Manifest(**(values | changes))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return bundle.write(tmp_path / "bundle", _manifest(), FILES).path


def _edit(path: Path, **changes: Any) -> None:
    document = json.loads((path / "bundle.json").read_bytes())
    (path / "bundle.json").write_text(json.dumps(document | changes))


def test_what_is_written_is_read_back(written: Path) -> None:
    found = bundle.read(written)
    assert found.manifest.model_copy(update={"files": {}}) == _manifest()
    assert {name: found.read(name) for name in found.manifest.files} == FILES
    assert found.digest == found.manifest.digest()


def test_the_digest_pins_every_byte_of_the_bundle(tmp_path: Path, written: Path) -> None:
    other = bundle.write(tmp_path / "other", _manifest(), FILES | {"model.onnx": b"another graph"})
    same = bundle.write(tmp_path / "same", _manifest(), FILES)
    assert same.digest == bundle.read(written).digest != other.digest


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_a_file_that_is_missing_is_refused(written: Path, name: str) -> None:
    (written / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        bundle.read(written)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_refused(written: Path, name: str) -> None:
    data = bytearray((written / name).read_bytes())
    data[len(data) // 2] ^= 1
    (written / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        bundle.read(written)


def test_a_file_that_the_manifest_does_not_name_is_refused(written: Path) -> None:
    (written / "extra.py").write_text("")
    with pytest.raises(BundleError, match=r"'extra\.py' is not in its manifest"):
        bundle.read(written)


@pytest.mark.parametrize("name", [*FILES, "bundle.json"])
def test_a_symbolic_link_is_refused_even_to_the_right_bytes(written: Path, tmp_path: Path, name: str) -> None:
    (written / name).rename(tmp_path / "outside")
    (written / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle.read(written)


def test_a_pipe_is_refused_and_does_not_block_the_reader(written: Path) -> None:
    (written / "model.onnx").unlink()
    os.mkfifo(written / "model.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        bundle.read(written)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "", "x\n", "bundle.json"])
def test_a_name_that_is_no_plain_file_name_is_refused_by_reader_and_writer(
    written: Path, tmp_path: Path, name: str
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 0}
    document = json.loads((written / "bundle.json").read_bytes())
    _edit(written, files=document["files"] | {name: entry})
    with pytest.raises(BundleError, match="not valid at files"):
        bundle.read(written)
    with pytest.raises(BundleError, match="not valid at files"):
        bundle.write(tmp_path / "other", _manifest(), FILES | {name: b""})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"labels": ["one"]}, "labels"),
        ({"tolerance": 0}, "tolerance"),
        ({"surprise": 1}, "surprise"),
        ({"input": {"height": 0, "width": 8, "channels": 1}}, "input.height"),
        ({"metrics": {"test/accuracy": "high"}}, "metrics.test/accuracy"),
    ],
)
def test_a_manifest_of_another_schema_is_refused_by_the_key(written: Path, change: dict[str, Any], where: str) -> None:
    _edit(written, **change)
    with pytest.raises(BundleError, match=f"not valid at {where}"):
        bundle.read(written)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"a":' * 10_000])
def test_a_manifest_that_is_no_document_is_refused(written: Path, data: bytes) -> None:
    (written / "bundle.json").write_bytes(data)
    with pytest.raises(BundleError, match="not valid"):
        bundle.read(written)


def test_a_bundle_without_its_model_is_neither_written_nor_read(written: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"names no 'model\.onnx'"):
        bundle.write(tmp_path / "other", _manifest(), {"golden-0.png": b""})
    document = json.loads((written / "bundle.json").read_bytes())
    _edit(written, files={"golden-0.png": document["files"]["golden-0.png"]})
    with pytest.raises(BundleError, match=r"names no 'model\.onnx'"):
        bundle.read(written)


def test_a_golden_image_needs_a_probability_for_each_label(tmp_path: Path) -> None:
    wrong = _manifest(golden=(Golden(file="golden-0.png", probabilities=(1.0,)),))
    with pytest.raises(BundleError, match="1 probabilities for 2 labels"):
        bundle.write(tmp_path / "bundle", wrong, FILES)


def test_a_file_that_changes_after_the_bundle_was_read_is_refused(written: Path) -> None:
    found = bundle.read(written)
    (written / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed"):
        found.read("model.onnx")


def test_a_file_that_the_manifest_does_not_name_cannot_be_asked_for(written: Path) -> None:
    with pytest.raises(BundleError, match=r"no file '\.\./secret'"):
        bundle.read(written).read("../secret")


def test_a_directory_that_is_not_there_is_refused_as_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json cannot be read"):
        bundle.read(tmp_path / "nowhere")


class _FullDisk:
    """Bytes that fail when they are written, as a full disk does in the middle of a bundle."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, _descriptor: int) -> None:
        self.seen += 1
        if self.seen == 2:
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    path = tmp_path / "bundle"
    digest = bundle.write(path, _manifest(), FILES).digest if before else None
    monkeypatch.setattr("os.fsync", _FullDisk())  # a disk cannot be filled in a test
    with pytest.raises(OSError, match="No space left"):
        bundle.write(path, _manifest(), FILES | {"model.onnx": b"new"})
    monkeypatch.undo()
    assert [item.name for item in tmp_path.iterdir() if "bundle" in item.name] == (["bundle"] if before else [])
    if before:
        assert bundle.read(path).digest == digest


def test_a_new_bundle_replaces_the_old_one_and_leaves_nothing_beside(written: Path) -> None:
    new = bundle.write(written, _manifest(), {**FILES, "model.onnx": b"new", "notes.txt": b"n"})
    assert bundle.read(written).digest == new.digest
    assert sorted(item.name for item in written.iterdir()) == ["bundle.json", "golden-0.png", "model.onnx", "notes.txt"]
    assert [item.name for item in written.parent.iterdir() if "bundle" in item.name] == ["bundle"]


def test_a_reader_beside_a_writer_never_misses_the_bundle(written: Path) -> None:
    digests = {bundle.read(written).digest}
    stop = threading.Event()
    missing: list[str] = []

    def look() -> None:
        while not stop.is_set():
            if not (written / "bundle.json").exists():
                missing.append("gone")

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(50):
            digests.add(bundle.write(written, _manifest(), FILES | {"model.onnx": str(number).encode()}).digest)
    finally:
        stop.set()
        reader.join()
    assert missing == []
    assert len(digests) == 51


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_no_bundle_is_never_written_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    if kind == "directory":
        path.mkdir()
    kept = path / "thesis.txt" if kind == "directory" else path
    kept.write_text("years of work")
    with pytest.raises(BundleError, match=r"mine: it is no bundle, and what stands there would be removed"):
        bundle.write(path, _manifest(), FILES)
    assert kept.read_text() == "years of work"
    assert [item.name for item in tmp_path.iterdir() if "mine" in item.name] == ["mine"]


def test_an_empty_directory_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert bundle.write(tmp_path / "empty", _manifest(), FILES).read("model.onnx") == FILES["model.onnx"]
