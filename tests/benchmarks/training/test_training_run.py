from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.training import inputs, run
from benchmarks.training.run import Options, Size, resized
from contracts.errors import RequestError
from pipelines import recipe_files
from pipelines.cli.main import app, guard


def test_options_are_checked_before_anything_is_installed() -> None:
    with pytest.raises(RequestError, match="--recipes 'mnits' is not known; use one or more of mnist, fashion"):
        Options.of(recipes="mnits")
    with pytest.raises(RequestError, match="--peers 'jax' is not known"):
        Options.of(peers="keras,jax")
    with pytest.raises(RequestError, match="keep one of them"):
        Options.of(quick=True, full=True)
    assert Options.of(peers="none").peers == ()
    assert Options.of(recipes="fashion, mnist").recipes == ("mnist", "fashion")


def test_a_quick_run_never_takes_the_place_of_results() -> None:
    assert Options.of().output == run.HERE
    assert Options.of(quick=True).output != run.HERE


def test_the_command_line_refuses_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code = guard(lambda: app(args=["bench", "train", "--recipes", "mnits"], prog_name="stride", standalone_mode=False))
    assert code == 2
    assert "error: --recipes 'mnits' is not known" in capsys.readouterr().err
    assert "--quick" in CliRunner().invoke(app, ["bench", "train", "--help"]).output


def test_a_smaller_recipe_differs_in_epochs_images_and_seed_alone() -> None:
    recipe = recipe_files.load("fashion")
    small = resized(recipe, Size(epochs=2, images=500), seed=3)
    assert (small.fit.epochs, small.fit.seed, small.data.limit) == (2, 3, 500)
    same = small.model_copy(update={"fit": recipe.fit, "data": recipe.data})
    assert same == recipe


def test_made_up_images_are_read_as_real_ones(tmp_path: Path) -> None:
    inputs.make_up(tmp_path / "MNIST" / "raw", counts={"train": 400, "t10k": 100})
    recipe = resized(recipe_files.load("mnist"), Size(), seed=0)
    given = inputs.prepare(recipe, tmp_path / "images", root=tmp_path, real=False)
    images = np.load(given.folder / "train-images.npy")
    assert images.shape == (given.train, 28, 28, 1)
    assert images.dtype == np.uint8
    assert given.classes == 10
    assert given.bytes == 500 * 28 * 28
    assert len(np.load(given.folder / "test-labels.npy")) == 100


def test_real_images_are_taken_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_files.load("mnist")
    monkeypatch.setattr(inputs, "SPLITS", {"train": 100, "t10k": 50})
    assert inputs.data_root(recipe, tmp_path / "scratch") == (tmp_path / "scratch" / "data", False)
    inputs.make_up(tmp_path / "there" / "MNIST" / "raw", counts={"train": 10, "t10k": 10})
    monkeypatch.setenv("STRIDE_DATA", str(tmp_path / "there"))
    assert inputs.data_root(recipe, tmp_path / "scratch") == (tmp_path / "there", True)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> run.Outcome:
    """Stride and the bare step on a few made-up images; the peers' environment is not needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STRIDE_DATA", raising=False)
        patch.setattr(inputs, "SPLITS", {"train": 1000, "t10k": 200})
        patch.setattr(run, "QUICK", {"mnist": Size(epochs=2)})
        output = tmp_path_factory.mktemp("results")
        (output / "results.json").write_text("{}")
        return run.run(Options(size="quick", recipes=("mnist",), peers=("bare",), output=output), say=lambda _: None)


def test_a_run_measures_every_epoch_of_every_contender(outcome: run.Outcome) -> None:
    content = outcome.results["mnist"]
    assert [(entry["name"], entry["problem"]) for entry in content["entries"]] == [("stride", None), ("bare", None)]
    stride, bare = content["entries"]
    assert len(stride["epochs"]) == len(bare["epochs"]) == 2
    assert all(epoch["steps_seconds"] + epoch["validation_seconds"] < epoch["seconds"] for epoch in stride["epochs"])
    assert all(epoch["cpu_seconds"] > 0 for epoch in stride["epochs"])
    assert stride["ready"]["parameters"] == bare["ready"]["parameters"] == 93_322
    assert stride["ready"]["how"] == bare["ready"]["how"]
    # mnist keeps its last weights; the report judges them in fp32, whatever the fit computed in
    assert stride["done"]["test_accuracy"] == pytest.approx(stride["epochs"][-1]["test_accuracy"], abs=0.02)
    assert "torch" in content["versions"]


def test_the_report_names_machine_bars_and_what_was_not_judged(outcome: run.Outcome) -> None:
    text = outcome.report.read_text()
    assert "## `mnist`" in text
    assert "`stride bench train --quick --recipes mnist --peers bare`" in text
    assert "images that were made up" in text
    assert "| images/s >= 2.0 x keras | not judged | keras did not take part |" in text
    assert "not yet measured" in text
    assert outcome.held
    assert all(bar.held is None for bar in outcome.bars)  # a quick run is too short to judge
    assert json.loads((outcome.report.parent / "results.json").read_text()) == json.loads(json.dumps(outcome.results))


def test_a_run_of_one_recipe_keeps_the_section_of_another(outcome: run.Outcome, tmp_path: Path) -> None:
    other: dict[str, Any] = {**outcome.results["mnist"], "command": "the former one"}
    run._write(tmp_path, {"fashion": other})
    run._write(tmp_path, {"mnist": outcome.results["mnist"]})
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["mnist", "fashion"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("## `mnist`") < text.index("## `fashion`") < text.index("the former one")
    assert not list(tmp_path.glob("*.json.*"))
