from __future__ import annotations

import pytest
from mlflow.tracking import MlflowClient

from contracts import places
from contracts.recipe import Recipe
from services.training.listening import Enough
from services.training.train import train
from tests.services.training.conftest import MakeRecipe

TAGS = {"stride.sweep": "s1", "stride.trial": "0"}


@pytest.fixture
def quick(make_recipe: MakeRecipe, embedded_tracking: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    return make_recipe(fit={"epochs": 3, "batch_size": 128, "precision": "fp32"})


def test_a_listener_hears_of_every_epoch_once(quick: Recipe) -> None:
    heard: dict[int, float] = {}
    result = train(
        quick,
        progress=False,
        listener=lambda epoch, metrics: heard.update({epoch: metrics["validation/accuracy"]}),
    )
    assert list(heard) == [1, 2, 3]
    assert max(heard.values()) == result.validation_accuracy


def test_enough_ends_the_run_as_killed_and_leaves_no_checkpoint(quick: Recipe) -> None:
    def enough(epoch: int, _: dict[str, float]) -> None:
        if epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        train(quick, progress=False, tags=TAGS, listener=enough)
    client = MlflowClient(places.tracking_uri())
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "validation/loss")] == [1, 2]
    assert not list((places.home() / "checkpoints").glob("*/*.safetensors"))
    heard: list[int] = []
    train(quick, progress=False, tags=TAGS, listener=lambda epoch, _: heard.append(epoch))
    assert heard == [1, 2, 3]  # it does not go on where it was stopped


def test_runs_of_other_tags_are_neither_taken_nor_gone_on_with(quick: Recipe) -> None:
    plain = train(quick, progress=False)
    first = train(quick, progress=False, tags=TAGS)
    second = train(quick, progress=False, tags={**TAGS, "stride.trial": "1"})
    again = train(quick, progress=False, tags=TAGS)
    assert len({plain.run_id, first.run_id, second.run_id}) == 3
    assert (again.run_id, again.reused) == (first.run_id, True)
    tags = MlflowClient(places.tracking_uri()).get_run(second.run_id).data.tags
    assert (tags["stride.sweep"], tags["stride.trial"]) == ("s1", "1")
