from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.training.code_version import code_version, source_digest


def test_the_version_holds_the_packages_version_and_a_digest() -> None:
    version, _, digest = code_version().partition("+")
    assert version.count(".") == 2
    assert len(digest) == 12
    assert code_version() == code_version()


def test_a_changed_a_renamed_and_a_new_source_change_the_digest(tmp_path: Path) -> None:
    source = tmp_path / "contracts" / "a.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    digests = [source_digest(tmp_path)]
    source.write_text("x = 2\n")
    digests.append(source_digest(tmp_path))
    source = source.rename(source.with_name("b.py"))
    digests.append(source_digest(tmp_path))
    (tmp_path / "services" / "training").mkdir(parents=True)
    (tmp_path / "services" / "training" / "c.py").write_text("")
    digests.append(source_digest(tmp_path))
    assert len(set(digests)) == 4


def test_files_that_decide_nothing_do_not_change_the_digest(tmp_path: Path) -> None:
    before = source_digest(tmp_path)
    for name in (
        "contracts/__pycache__/a.pyc",
        "services/inference/a.py",
        "services/training/jobs/app.py",
        "pipelines/a.py",
        "README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert source_digest(tmp_path) == before


@pytest.mark.measured
def test_it_takes_less_than_50_ms() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        code_version.__wrapped__()
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.05
