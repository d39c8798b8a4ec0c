"""The one reader of finished runs; that a whole run is rebuilt is tested where one is trained (test_train)."""

from __future__ import annotations

import pytest
import torch

from contracts.errors import RegistryError
from contracts.image_spec import ImageSpec
from contracts.recipe import Recipe
from services.training import runs, tracking, weights
from services.training.networks import ServedGraph, build

pytestmark = pytest.mark.usefixtures("embedded_tracking")


def graph_of(recipe: Recipe) -> ServedGraph:
    network = build(recipe.model, image=ImageSpec(height=8, width=8, channels=1), classes=3)
    return ServedGraph(network, output="softmax", mean=(0.4,), std=(0.3,), temperature=1.7)


def test_what_was_saved_is_read_again(tiny_recipe: Recipe) -> None:
    graph = graph_of(tiny_recipe)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        runs.save(run, recipe=tiny_recipe, labels=("a", "b", "c"), graph=graph)
    stored = runs.read_network(run.run_id, instead="train again")
    assert (stored.labels, stored.output) == (("a", "b", "c"), "softmax")
    assert stored.mean == pytest.approx((0.4,))
    assert stored.std == pytest.approx((0.3,))
    assert stored.temperature == pytest.approx(1.7)
    assert all(torch.equal(value, stored.state[name]) for name, value in graph.network.state_dict().items())
    assert runs.load_run(run.run_id).recipe == tiny_recipe
    assert weights.read_run(run.run_id).labels == ("a", "b", "c")


def test_a_run_that_is_not_finished_is_refused_with_what_to_do_instead(tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        with pytest.raises(RegistryError) as loaded:
            runs.load_run(run.run_id)
        with pytest.raises(RegistryError) as named:
            weights.read_run(run.run_id)
    assert loaded.value.message == f"run {run.run_id} is RUNNING, not FINISHED; train its recipe again."
    assert named.value.message == f"run {run.run_id} is RUNNING, not FINISHED; name another in model.weights."
