"""Recipes of pretrained networks: what can be followed, and the sentence for what cannot."""

from __future__ import annotations

import pytest

from contracts import recipe
from tests.contracts.recipes import Content, backbone_content, refusal_of


def test_a_backbone_of_an_older_recipe_is_still_one() -> None:
    parsed = recipe.parse(backbone_content(weights="imagenet", head="linear", output="sigmoid"), name="old")
    assert parsed.output == "sigmoid"


def test_dense_layers_on_a_backbone_say_the_output() -> None:
    parsed = recipe.parse(backbone_content(head={"units": [256], "output": "sigmoid"}), name="dense")
    assert parsed.output == "sigmoid"
    assert recipe.parse(parsed.model_dump(mode="json"), name="dense").digest() == parsed.digest()


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"weights": "imagenett"}, "model.weights is 'imagenett'; input should be 'none' or 'imagenet'."),
        ({"weights": {"fil": "a"}}, "key 'model.weights.fil' is not known; did you mean 'model.weights.file'?"),
        ({"weights": {}}, "model.weights needs one of file, run, recipe and model, it has none of them."),
        (
            {"weights": {"file": "a", "run": "b"}},
            "model.weights needs one of file, run, recipe and model, it has file and run.",
        ),
        (
            {"weights": {"run": "b", "alias": "c"}},
            "model.weights: version and alias are of a registered model, not of a run.",
        ),
        (
            {"weights": {"model": "b", "alias": "c", "version": 1}},
            "model.weights has a version and an alias; keep one of them.",
        ),
        ({"weights": {"run": "b", "sha256": "0" * 64}}, "model.weights.sha256 is of a file, not of a run; remove it."),
        ({"head": {"unit": [1]}}, "key 'model.head.unit' is not known; did you mean 'model.head.units'?"),
        ({"head": "dense"}, "model.head is 'dense'; input should be 'linear'."),
        ({"frozen": "base"}, "model.frozen is 'base'; write a list, as in [a, b]."),
        (
            {"frozen": ["base"], "trainable_from": "block3"},
            "model.frozen holds the whole base, model.trainable_from a part of it; remove one of them.",
        ),
        (
            {"head": {"units": [4]}, "output": "sigmoid"},
            "model.output is of the linear head; with dense layers set model.head.output to 'sigmoid'.",
        ),
    ],
)
def test_a_transfer_that_cannot_be_followed_is_refused(parts: Content, sentence: str) -> None:
    assert refusal_of(backbone_content(**parts)) == f"recipe 'mine': {sentence}"
