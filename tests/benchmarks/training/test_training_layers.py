from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from benchmarks.training.layers import layers
from pipelines import recipe_files
from services.training.networks import build, count_parameters

KINDS = {
    nn.Conv2d: "conv",
    nn.ReLU: "relu",
    nn.BatchNorm2d: "norm",
    nn.MaxPool2d: "max_pool",
    nn.Dropout: "dropout",
    nn.Flatten: "flatten",
    nn.Linear: "dense",
}


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_the_peers_network_is_strides_own_layer_by_layer_and_to_the_parameter(name: str) -> None:
    recipe = recipe_files.load(name)
    plan = layers(recipe.model.model_dump(mode="json"), recipe.data.image.model_dump(mode="json"), 10)
    network = build(recipe.model, image=recipe.data.image, classes=10)
    named = [(module, kind) for module in network.modules() for cls, kind in KINDS.items() if isinstance(module, cls)]
    assert [layer.kind for layer in plan] == [kind for _, kind in named]
    assert sum(layer.parameters for layer in plan) == count_parameters(network).total == recipe.published.parameters
    for layer, (module, _) in zip(plan, named, strict=True):
        if isinstance(module, nn.Conv2d):
            assert (layer.inputs, layer.outputs) == (module.in_channels, module.out_channels)
            assert (layer.size,) * 2 == module.kernel_size
            assert layer.same == (module.padding == (layer.size // 2,) * 2)
        elif isinstance(module, nn.BatchNorm2d):
            assert (layer.momentum, layer.epsilon) == (module.momentum, module.eps)
        elif isinstance(module, nn.Linear):
            assert (layer.inputs, layer.outputs) == (module.in_features, module.out_features)
        elif isinstance(module, nn.Dropout):
            assert layer.rate == module.p


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "backbone"}, "model.kind"),
        ({"init": "torch"}, "model.init"),
        ({"head": {"output": "sigmoid"}}, "head.output"),
        ({"blocks": {"residual": True}}, "block.residual"),
        ({"blocks": {"stride": 2}}, "block.stride"),
    ],
)
def test_a_network_that_the_peers_could_not_have_is_refused(change: dict[str, Any], said: str) -> None:
    recipe = recipe_files.load("mnist")
    model = recipe.model.model_dump(mode="json")
    for key, value in change.items():
        if key == "blocks":
            model["blocks"][0].update(value)
        elif key == "head":
            model["head"].update(value)
        else:
            model[key] = value
    with pytest.raises(ValueError, match=said):
        layers(model, recipe.data.image.model_dump(mode="json"), 10)
