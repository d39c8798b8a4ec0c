from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from contracts import places
from contracts.recipe import Recipe
from pipelines.sweeps.trial import Config, SteppedFit


@pytest.fixture
def config(
    make_recipe: Callable[..., Recipe], embedded_tracking: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")

    def make(**changes: Any) -> Config:
        fit = {"epochs": 3, "batch_size": 64, "precision": "fp32", "restore_best": False}
        recipe = make_recipe(**{"fit": fit, **changes})
        tags = {"stride.sweep": "s", "stride.trial": "0"}
        return Config(recipe=recipe.model_dump(mode="json"), tags=tags, metric="validation/accuracy", environment={})

    return make


def test_a_fit_is_stepped_through_and_finishes_its_run(config: Callable[..., Config]) -> None:
    fit = SteppedFit(config())
    first, second, last = fit.step(), fit.step(), fit.step()
    assert [report["epoch"] for report in (first, second, last)] == [1, 2, 3]
    assert "done" not in second
    assert last["done"]
    run = MlflowClient(places.tracking_uri()).get_run(last["run_id"])
    assert run.info.status == "FINISHED"
    assert last["value"] == run.data.metrics["validation/accuracy"]  # of the weights that are kept: the last ones here
    fit.stop()
    assert SteppedFit(config()).step() == last  # taken from the finished run


def test_a_fit_that_is_stopped_closes_its_run(config: Callable[..., Config]) -> None:
    fit = SteppedFit(config())
    fit.step()
    fit.stop()
    client = MlflowClient(places.tracking_uri())
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert len(client.get_metric_history(run.info.run_id, "validation/accuracy")) == 1


def test_a_loss_that_is_not_finite_is_a_result(config: Callable[..., Config]) -> None:
    report = SteppedFit(config(optimizer={"name": "sgd", "lr": 1e30})).step()
    assert report["done"]
    assert report["diverged"]
    assert "not finite" in report["problem"]
    assert "value" not in report


def test_what_a_fit_raises_is_raised_where_it_is_stepped(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    from contracts.errors import RegistryError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError):
        SteppedFit(config()).step()


def test_a_fit_that_is_never_stepped_can_be_stopped(config: Callable[..., Config]) -> None:
    SteppedFit(config()).stop()
