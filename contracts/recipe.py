"""The recipe: one validated, hashed description of a training run. It says what; the environment says where.

Unknown keys are refused with the nearest known one, and combinations that cannot work are refused when the recipe is
built, naming the key to change. `Recipe.digest()` identifies what would be fitted. Its parts stand in modules of their
own and are to be had from here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from contracts.errors import RecipeError
from contracts.recipe_data import Augmentation, Data, Normalize
from contracts.recipe_fit import EarlyStopping, Fit, Group, Optimizer, Schedule
from contracts.recipe_model import Backbone, Block, Convnet, Head, Weights
from contracts.recipe_part import Count, Fraction, Part, Positive, Slug

__all__ = [
    "Augmentation",
    "Backbone",
    "Block",
    "Convnet",
    "Data",
    "EarlyStopping",
    "Export",
    "Fit",
    "Gate",
    "Group",
    "Head",
    "Normalize",
    "Optimizer",
    "Published",
    "Recipe",
    "Schedule",
    "Tune",
    "Weights",
    "json_schema",
    "parse",
]


class Export(Part):
    opset: Annotated[int, Field(ge=18, le=25)] = 20
    tolerance: Positive = 1e-4
    """Largest difference of a probability between torch (fp32) and onnxruntime over the whole test split."""
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 7, 64)
    """The batch sizes at which the two are compared."""


class Gate(Part):
    """What a candidate must show before it is served."""

    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Lowest test accuracy."""
    max_drop: Fraction = 0.0
    """How far test accuracy may fall below the champion's on the same test images."""
    max_bytes: Count = 500_000_000
    """Largest model.onnx."""


class Tune(Part):
    """How the graph that is served is chosen among faster ones, by `stride ship` and `stride tune`."""

    seconds: Annotated[float, Field(gt=0, le=3600)] = 2.0
    """Graphs are timed for about these, and no further scales of int8 are tried after them."""
    most_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """No graph is judged whose answers to all validation images could not be expected within these; fp32 stays then."""
    min_gain: Fraction = 0.1
    """The least share of the fp32 graph's time that another one must save to take its place."""
    max_loss: Fraction = 0.002
    """How much validation accuracy it may lose to it."""
    min_images: Count = 500
    """Validation images without which no lower precision is taken: 0.2 points cannot be told from fewer than 500."""


class Published(Part):
    """A figure that others published for this recipe."""

    test_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    source: str | None = None
    differs: str | None = None
    """What is done otherwise here than where the figure is from, as far as it is known."""


class Recipe(Part):
    """One training run, whole."""

    name: Slug
    description: str = ""
    model_name: Slug
    """The registered model that the result is a version of; recipes that compete share it."""
    published: Published = Published()
    data: Data
    model: Annotated[Convnet | Backbone, Field(discriminator="kind")]
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    fit: Fit = Fit()
    export: Export = Export()
    gate: Gate = Gate()
    tune: Tune = Tune()

    @model_validator(mode="after")
    def _check(self) -> Self:
        output = self.output
        classes = self.data.classes
        if output == "sigmoid" and classes is not None and len(classes) != 2:
            raise ValueError(f"one sigmoid unit tells two classes apart, data.classes has {len(classes)}; use softmax")
        if output == "sigmoid" and self.fit.label_smoothing:
            raise ValueError("fit.label_smoothing is for softmax; set it to 0 or the output to softmax")
        image, augmentation = self.data.image, self.augmentation
        if image.channels == 1 and (augmentation.saturation or augmentation.hue):
            raise ValueError("augmentation.saturation and augmentation.hue need data.image.channels 3; set them to 0")
        if augmentation.fill == "reflect" and augmentation.crop_padding >= min(image.height, image.width):
            raise ValueError("augmentation.crop_padding must be less than the image's side where fill is 'reflect'")
        if isinstance(self.data.normalize, Normalize):
            for key in ("mean", "std"):
                if len(getattr(self.data.normalize, key)) != self.data.image.channels:
                    raise ValueError(f"data.normalize.{key} must have {self.data.image.channels} values, one a channel")
        return self

    @property
    def output(self) -> Literal["softmax", "sigmoid"]:
        return self.model.output_activation

    def digest(self) -> str:
        """sha256 over what decides the fit and the export: not names, description, published figures, gate and tune."""
        left_out = {"name", "description", "published", "gate", "tune", "model_name"}
        content = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse(content: Mapping[str, Any], *, name: str) -> Recipe:
    """Validate a recipe.

    Raises:
        RecipeError: one sentence with the key, its value, what was expected, and the nearest known key for a typo.
    """
    if not isinstance(content, Mapping):
        raise RecipeError(
            f"recipe '{name}': it is {content!r:.80}; expected keys and values such as 'data' and 'model'."
        )
    try:
        return Recipe.model_validate({"name": name, "model_name": name, **content})
    except ValidationError as error:
        from contracts.recipe_errors import explain  # a good recipe does not wait for it

        raise RecipeError(f"recipe '{name}': {explain(error, Recipe)}") from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors (name and model_name default to the file's name)."""
    from contracts.recipe_schema import json_schema as schema_of

    return schema_of(Recipe)
