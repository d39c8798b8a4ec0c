from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.errors import AlreadyFitting, DataError, FitError, RecipeError
from pipelines import first_champion, registry, ship
from pipelines.registry import Version


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were shipped, instead of shipping them; tests/compose does it for real."""
    models: list[str] = []

    def deliver(recipe: Any, **_: Any) -> SimpleNamespace:
        models.append(recipe.model_name)
        return SimpleNamespace(
            verdict="accepted", model=recipe.model_name, version="1", test_accuracy=0.9, reasons=(), exit_code=0
        )

    monkeypatch.setattr(ship, "ship", deliver)
    return models


def run(*arguments: str) -> Any:
    return CliRunner().invoke(first_champion.app, list(arguments))


@pytest.mark.usefixtures("embedded_tracking")
def test_an_empty_registry_gets_a_model(shipped: list[str]) -> None:
    result = run("--recipe=", "--images=", "--model=images")

    assert result.exit_code == 0, result.output
    assert shipped == ["digits"]


@pytest.mark.usefixtures("embedded_tracking")
def test_a_model_that_has_a_champion_is_left_alone(shipped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = Version(model="digits", version="4", run_id="r", bundle_uri=None, digest=None)
    monkeypatch.setattr(registry, "champion", lambda _client, model: found if model == "digits" else None)

    result = run("--recipe=digits")

    assert result.exit_code == 0
    assert "digits version 4 is the champion; nothing is fitted" in result.stderr
    assert shipped == []
    assert run("--recipe=mnist").exit_code == 0
    assert shipped == ["mnist"]


@pytest.mark.usefixtures("embedded_tracking")
def test_a_fit_under_way_elsewhere_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> None:
        raise AlreadyFitting("another process fits this recipe.")

    monkeypatch.setattr(ship, "ship", busy)
    failed = run("--recipe=digits").exception
    assert isinstance(failed, FitError)
    assert failed.exit_code == 1


@pytest.mark.usefixtures("embedded_tracking")
def test_a_refusal_by_the_gate_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = SimpleNamespace(
        verdict="refused", model="digits", version=None, test_accuracy=0.1, reasons=("floor",), exit_code=2
    )
    monkeypatch.setattr(ship, "ship", lambda *_, **__: refused)

    assert run().exit_code == 2


def test_one_s_own_images_are_fitted_by_the_recipe_folder_under_a_name(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()

    recipe = first_champion.chosen("", str(tmp_path), "pets")

    assert recipe.name == "folder"
    assert recipe.model_name == "pets"
    assert str(recipe.data.path) == str(tmp_path)


@pytest.mark.parametrize("made", [True, False])
def test_images_that_are_not_there_are_said(tmp_path: Path, made: bool) -> None:
    directory = tmp_path / "photos"
    if made:
        directory.mkdir()

    with pytest.raises(DataError, match="one directory a class"):
        first_champion.chosen("", str(directory), "")


def test_an_unknown_recipe_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(RecipeError, match="digit"):
        first_champion.chosen("digitz", "", "")
