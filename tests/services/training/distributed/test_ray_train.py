"""Two workers of a real Ray, started for the test, against what an address that nobody answers at is refused with."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from contracts import places
from contracts.errors import DeviceError, RecipeError
from contracts.recipe import Recipe, parse
from services.training.distributed import ray_train
from services.training.distributed.ray_train import launch


def small(**parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 4, "padding": "same", "norm": "batch"}]},
        "fit": {"epochs": 2, "batch_size": 64, "precision": "fp32"},
        **parts,
    }
    return parse(content, name="on-ray")


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # Ray's own
@pytest.mark.usefixtures("embedded_tracking")
def test_two_workers_of_a_ray_cluster_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    result = launch(small(), workers=2, address="local", progress=False)
    assert (result.workers, result.epochs) == (2, 2)
    client = MlflowClient(places.tracking_uri())
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["stride.workers"] == "2"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/loss")] == [1, 2]


def test_a_cluster_that_does_not_answer_is_refused(free_port: int) -> None:
    with pytest.raises(DeviceError, match=rf"^RAY_ADDRESS is '127\.0\.0\.1:{free_port}': no Ray cluster answers there"):
        launch(small(), workers=2, address=f"127.0.0.1:{free_port}")


def test_more_workers_than_the_cluster_has_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "cuda")
    with pytest.raises(RecipeError, match=r"^--workers is 4, but 2 GPUs are here and each worker takes one"):
        ray_train._on_gpus(4, 2)
    monkeypatch.setenv("STRIDE_DEVICE", "auto")
    assert not ray_train._on_gpus(4, 0)
    assert ray_train._on_gpus(2, 2)
