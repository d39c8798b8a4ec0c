"""Environments on demand; the lock here is empty, so nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.serving import environments, servers
from benchmarks.serving.options import Options
from contracts.errors import RecipeError

ROOT = Path(__file__).parents[3]


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE))


def test_an_environment_is_made_once_for_a_lock_and_again_for_another(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# nothing\n")
    monkeypatch.setitem(environments.LOCKS, "peers", lock)
    said: list[str] = []
    first = environments.python("peers", say=said.append)
    assert first.exists()
    assert first.is_relative_to(home)
    assert environments.python("peers", say=said.append) == first
    assert len(said) == 1
    assert environments.versions(first, ["pip"]).keys() == {"pip"}
    lock.write_text("# nothing else\n")
    second = environments.python("peers", say=said.append)
    assert second != first
    assert second.exists()
    assert not first.exists()


def test_an_environment_that_cannot_be_made_says_why_and_does_not_count_as_made(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("no requirement at all\n")  # refused without asking an index
    monkeypatch.setitem(environments.LOCKS, "peers", lock)
    with pytest.raises(environments.NoEnvironment, match=r"lock\.txt cannot be installed: "):
        environments.python("peers", say=lambda _: None)
    assert not list(home.rglob(".complete"))


@pytest.mark.parametrize("lock", sorted({server.lock or "" for server in servers.PEERS}))
def test_what_is_measured_in_all_servers_is_the_same_version(lock: str) -> None:
    ours, theirs = pins(ROOT / "requirements-dev.txt"), pins(environments.LOCKS[lock])
    shared = {"onnxruntime-gpu", "numpy", "pillow", "uvicorn", "uvloop", "httptools"}
    assert shared <= theirs.keys()
    assert {name for name in shared if ours[name] != theirs[name]} == set()


def test_every_server_s_lock_holds_the_packages_whose_versions_are_told() -> None:
    for server in servers.PEERS:
        assert server.lock is not None
        assert set(server.packages) <= pins(environments.LOCKS[server.lock]).keys(), server.name
        assert (ROOT / server.source).is_file()


def test_an_unknown_peer_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match="--peers: 'flask' is not known; name some of starlette, fastapi"):
        Options.of(quick=False, peers="fastapi,flask", minutes=None, output=None)


def test_only_a_whole_run_replaces_the_report_of_the_repository(home: Path) -> None:
    kept = ROOT / "benchmarks" / "serving"
    assert Options.of(quick=False, peers=None, minutes=None, output=None).output == kept
    for options in (
        Options.of(quick=True, peers=None, minutes=None, output=None),
        Options.of(quick=False, peers="none", minutes=None, output=None),
    ):
        assert options.output.is_relative_to(home)
    assert Options.of(quick=False, peers="none", minutes=None, output=None).peers == ()
