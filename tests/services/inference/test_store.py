"""services.inference.store: what is on the disk is whole, also with several workers and after a crash."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contracts.bundle import Bundle
from contracts.errors import BundleError
from services.inference.store import Served, Store


def copy_of(known: Bundle) -> Any:
    return lambda staging: Path(shutil.copytree(known.path, staging / "bundle"))


def test_a_bundle_is_fetched_once_and_then_read_from_the_disk(tiny: Any, tmp_path: Path) -> None:
    known, store = tiny(1).bundle(tmp_path / "b"), Store(tmp_path / "serving")
    assert store.install("a", known.digest, copy_of(known)).digest == known.digest

    def again(_: Path) -> Path:
        raise AssertionError("it is here already")

    assert store.install("a", known.digest, again).manifest == known.manifest


def test_a_bundle_of_another_digest_is_refused_and_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    known, store = tiny(1).bundle(tmp_path / "b"), Store(tmp_path / "serving")
    with pytest.raises(BundleError, match="the registry says"):
        store.install("a", "0" * 64, copy_of(known))
    assert list((tmp_path / "serving" / "a").iterdir()) == []


def test_a_digest_that_is_none_cannot_name_a_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        Store(tmp_path).install("a", "../../elsewhere", lambda staging: staging)


def test_a_broken_bundle_on_the_disk_is_fetched_again(tiny: Any, tmp_path: Path) -> None:
    known, store = tiny(1).bundle(tmp_path / "b"), Store(tmp_path / "serving")
    store.install("a", known.digest, copy_of(known))
    (tmp_path / "serving" / "a" / known.digest / "model.onnx").write_bytes(b"broken")
    assert store.installed("a", known.digest) is None
    assert store.install("a", known.digest, copy_of(known)).read("model.onnx") == known.read("model.onnx")


def test_several_workers_install_the_same_bundle_at_once(tiny: Any, tmp_path: Path) -> None:
    known, store = tiny(1).bundle(tmp_path / "b"), Store(tmp_path / "serving")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: store.install("a", known.digest, copy_of(known)).digest, range(8)))
    assert done == [known.digest] * 8
    assert not list((tmp_path / "serving" / "a").glob(".staging-*"))


@pytest.mark.parametrize("name", ["a", "../outside", ".", "..", "with space/and slash"])
def test_what_was_served_is_remembered_inside_the_store_whatever_the_name(tiny: Any, tmp_path: Path, name: str) -> None:
    known, store = tiny(1).bundle(tmp_path / "b"), Store(tmp_path / "serving")
    store.install(name, known.digest, copy_of(known))
    store.remember(Served(name, "3", known.digest, 17))
    assert store.remembered() == [Served(name, "3", known.digest, 17)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "serving"]


def test_only_the_last_three_bundles_are_kept(tiny: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "serving")
    digests = []
    for seed in range(5):
        known = tiny(seed).bundle(tmp_path / f"b{seed}")
        store.install("a", known.digest, copy_of(known))
        store.remember(Served("a", str(seed), known.digest, 0))
        digests.append(known.digest)
    kept = {path.name for path in (tmp_path / "serving" / "a").iterdir() if len(path.name) == 64}
    assert digests[-1] in kept
    assert len(kept) == 3


def test_an_unreadable_state_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state.json").write_text("{")
    assert Store(tmp_path).remembered() == []


def test_what_a_killed_worker_was_fetching_is_removed_after_an_hour(tiny: Any, tmp_path: Path) -> None:
    known, store = tiny(1).bundle(tmp_path / "b"), Store(tmp_path / "serving")
    store.install("a", known.digest, copy_of(known))
    leftover, running = tmp_path / "serving/a/.staging-dead", tmp_path / "serving/a/.staging-running"
    for path in (leftover, running):
        path.mkdir()
        (path / "model.onnx").write_bytes(b"half")
    os.utime(leftover, (0, 0))
    store.remember(Served("a", "1", known.digest, 0))
    assert (leftover.exists(), running.exists()) == (False, True)


def test_challengers_that_come_and_go_leave_no_bundles_behind_and_never_push_the_served_one_out(
    tiny: Any, tmp_path: Path
) -> None:
    store = Store(tmp_path / "serving")
    champion = tiny(0).bundle(tmp_path / "b0")
    store.install("a", champion.digest, copy_of(champion))
    store.remember(Served("a", "0", champion.digest, 0))
    for seed in range(1, 6):  # what is only tried is never remembered
        known = tiny(seed).bundle(tmp_path / f"b{seed}")
        store.install("a", known.digest, copy_of(known))
        assert store.installed("a", known.digest) is not None
    kept = {path.name for path in (tmp_path / "serving" / "a").iterdir() if len(path.name) == 64}
    assert champion.digest in kept
    assert len(kept) == 3
