"""Where things are, as the environment says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts import places


def test_without_a_word_from_the_environment_everything_is_below_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STRIDE_HOME")
    monkeypatch.chdir(tmp_path)
    assert places.home() == tmp_path / ".stride"
    assert places.data() == tmp_path / ".stride" / "data"
    assert places.tracking_uri() == f"sqlite:///{tmp_path / '.stride' / 'mlflow.db'}"


def test_the_environment_moves_each_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STRIDE_HOME", str(tmp_path / "h"))
    monkeypatch.setenv("STRIDE_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert places.home() == tmp_path / "h"
    assert places.data() == tmp_path / "d"
    assert places.tracking_uri() == "http://mlflow:5000"


def test_relative_places_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRIDE_HOME", "here")
    monkeypatch.setenv("STRIDE_DATA", "there")
    assert places.home() == tmp_path / "here"
    assert places.data() == tmp_path / "there"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DATA", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert places.data() == places.home() / "data"
    assert places.tracking_uri().startswith("sqlite:///")


def test_looking_for_a_place_does_not_make_it(home: Path) -> None:
    places.data()
    places.tracking_uri()
    assert not home.exists()
