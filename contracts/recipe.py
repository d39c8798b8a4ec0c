"""The recipe: one validated, hashed description of a training run. It says what; the environment says where.

Unknown keys are refused with the nearest known one, and combinations that cannot work are refused when the recipe is
built, naming the key to change. `Recipe.digest()` identifies what would be fitted.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.errors import RecipeError
from contracts.image_spec import ImageSpec

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(coerce_numbers_to_str=True)]
"""Classes and directories are often called 0, 1, 2024, which YAML reads as numbers."""
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Normalize(_Part):
    """x/255, minus the mean, over the deviation; one value a channel, on the scale 0-1."""

    mean: tuple[float, ...]
    std: tuple[Positive, ...]


class Data(_Part):
    """The images, how they are split, and how their values are scaled."""

    dataset: Literal["digits", "mnist", "fashion", "cifar10", "folder"]
    """`digits` is embedded; `folder` reads class/*.jpg|png…, optionally under train/, val/ and test/."""
    path: Name | None = None
    """The directory of a `folder` data set; relative paths are taken from the working directory."""
    image: ImageSpec
    """The size that the network takes; images of another size are brought to it when they are decoded."""
    classes: tuple[Name, ...] | None = None
    """Only these classes, in this order; null takes all."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The fraction of the training images that is held out for validation (stratified, seeded)."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The fraction that is held out for the test where the data set brings no test split of its own."""
    limit: Count | None = None
    """Fit on at most this many training images (stratified, by `split_seed`), for a trial; null takes all of them."""
    split_seed: int = 0
    """The seed of the splits; apart from `fit.seed`, so that runs with other seeds share their test images."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """What a file that is not a still image does to a `folder`: it is named and left out, or it is fatal."""
    on_overlap: Literal["warn", "drop", "fail"] = "warn"
    """What identical images in train and test do: they are counted, dropped from train, or fatal."""
    normalize: Literal["auto", "unit", "standard"] | Normalize = "auto"
    """`unit` divides by 255; `standard` also takes the training images' mean and deviation per channel away; `auto`
    is what pretrained weights were fitted with, and `unit` where there are none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is not None) != (self.dataset == "folder"):
            what = "needs data.path" if self.dataset == "folder" else "takes no data.path"
            raise ValueError(f"dataset {self.dataset!r} {what}")
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(f"data.classes {list(self.classes)} must name at least two different classes")
        return self


class Block(_Part):
    """`repeat` times convolution, activation and normalisation, then pooling and dropout."""

    filters: Count
    kernel: Count = 3
    stride: Count = 1
    padding: Literal["valid", "same"] = "valid"
    repeat: Count = 1
    residual: bool = False
    """The block's input is added to what its convolutions make of it, before pooling; both must be of one shape."""
    activation: Literal["relu", "gelu", "silu", "leaky_relu", "tanh"] = "relu"
    norm: Literal["none", "batch"] = "none"
    norm_position: Literal["before_activation", "after_activation"] = "before_activation"
    bias: bool = True
    pool: Literal["none", "max", "average"] = "max"
    pool_size: Count = 2
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.residual and (self.stride != 1 or self.padding != "same" or self.kernel % 2 == 0):
            raise ValueError("a residual block keeps its size: set its stride to 1, padding to 'same', kernel to odd")
        return self


class Head(_Part):
    """Dense layers, and the output: softmax over n classes, or one sigmoid unit for two."""

    units: tuple[Count, ...] = ()
    activation: Literal["relu", "gelu", "silu", "leaky_relu", "tanh"] = "relu"
    dropout: Fraction = 0.0
    """After every dense layer but the last."""
    pool: Literal["flatten", "average", "max"] = "flatten"
    """How the feature map becomes a vector."""
    output: Literal["softmax", "sigmoid"] = "softmax"


class Convnet(_Part):
    """A network of blocks and a dense head."""

    kind: Literal["convnet"] = "convnet"
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    head: Head = Head()
    init: Literal["glorot_uniform", "he_normal", "torch"] = "torch"
    """`glorot_uniform` with zero biases is Keras' default; `torch` leaves torch's own."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The share of the new batch in BatchNorm's running statistics (Keras' momentum 0.99 is 0.01 here)."""
    norm_epsilon: Positive = 1e-5

    @property
    def output_activation(self) -> Literal["softmax", "sigmoid"]:
        return self.head.output


class Weights(_Part):
    """Where a backbone's initial weights come from: one of file, run, recipe and model."""

    file: Name | None = None
    """A .safetensors file, or a state dict of torch; looked for from the working directory, then in the directories of
    weights. It is taken to be fitted as torchvision's ImageNet weights are; where it is not, set data.normalize."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the file; another file is refused. A run's own recipe always says it."""
    run: Slug | None = None
    """The id of a finished run of the tracking server."""
    recipe: Slug | None = None
    """The newest finished run of the recipe of this name."""
    model: Slug | None = None
    """A registered model, at `version` or at `alias`."""
    version: Name | None = None
    alias: Slug | None = None
    """`champion` where no version is given."""
    include: Literal["base", "all"] = "base"
    """`base` leaves the head at its initial values; `all` takes it too, for the same classes in the same order."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [key for key in ("file", "run", "recipe", "model") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"model.weights needs one of file, run, recipe and model, it has {found}")
        if self.model is None and (self.version is not None or self.alias is not None):
            raise ValueError(f"model.weights: version and alias are of a registered model, not of a {given[0]}")
        if self.version is not None and self.alias is not None:
            raise ValueError("model.weights has a version and an alias; keep one of them")
        if self.file is None and self.sha256 is not None:
            raise ValueError(f"model.weights.sha256 is of a file, not of a {given[0]}; remove it")
        return self


class Backbone(_Part):
    """A classification network of torchvision whose head is fitted to the classes."""

    kind: Literal["backbone"] = "backbone"
    name: str
    """As torchvision.models.get_model takes it: resnet18, mobilenet_v3_small, vgg16, …"""
    weights: Literal["none", "imagenet"] | Weights = "none"
    """`imagenet` takes torchvision's default weights, downloaded once; a file, a run or a model is named by its key."""
    head: Literal["linear"] | Head = "linear"
    """`linear` replaces torchvision's last layer alone; dense layers replace its whole classifier and its pooling."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """Of the linear head; dense layers say it in `head.output`."""
    init: Literal["glorot_uniform", "he_normal", "torch"] = "torch"
    """Of the head; `glorot_uniform` with zero biases is Keras' default."""
    frozen: tuple[Name, ...] = ()
    """Layers that are held, each with all that is in it: `base` is all but the head; else torch's names (features.10,
    layer3.0) and, for VGG, also Keras' (block3, block3_conv1). BatchNorm of a held layer stays as in evaluation."""
    trainable_from: Name | None = None
    """All layers of the base before this one are held; the same names."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.head, Head) and self.output == "sigmoid" and self.head.output != "sigmoid":
            raise ValueError("model.output is of the linear head; with dense layers set model.head.output to 'sigmoid'")
        if self.trainable_from is not None and "base" in self.frozen:
            raise ValueError("model.frozen holds the whole base, model.trainable_from a part of it; remove one of them")
        return self

    @property
    def output_activation(self) -> Literal["softmax", "sigmoid"]:
        return self.head.output if isinstance(self.head, Head) else self.output


class Augmentation(_Part):
    """Random changes of the training images, drawn per image, on the device. All off by default."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels added on each side before a crop of the original size is cut at random."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees: the angle is drawn from [-rotation, rotation]."""
    shift: Fraction = 0.0
    """Fraction of the side: each axis moves by up to this."""
    shear: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Degrees, as Keras' shear_range: the angle is drawn from [-shear, shear]."""
    zoom: Fraction = 0.0
    """Each axis is scaled by a factor from [1 - zoom, 1 + zoom]."""
    fill: Literal["nearest", "zeros", "reflect", "constant"] = "nearest"
    """What stands outside the image: its edge, zeros, its mirror image, or `fill_value`."""
    fill_value: Annotated[int, Field(ge=0, le=255)] = 0
    """Of fill `constant`, in every channel."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """The side of a square that is set to zero, in pixels."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The values are multiplied by a factor from [1 - brightness, 1 + brightness]; likewise …"""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """… the distance from the image's mean gray …"""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """… and the distance from each pixel's own gray."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The hue turns by up to this share of the colour circle."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha: images and labels are mixed with another one's by a share drawn from Beta(alpha, alpha); 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha: a box of another image is set in, of a share likewise drawn. With mixup too, each image takes one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fill_value and self.fill != "constant":
            raise ValueError("augmentation.fill_value needs augmentation.fill 'constant'")
        return self

    @property
    def any(self) -> bool:
        return bool(self.model_dump(exclude_defaults=True, exclude={"fill", "fill_value"}))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, and their labels with them."""
        return bool(self.mixup or self.cutmix)


class Group(_Part):
    """Layers with a learning rate of their own."""

    layers: Annotated[tuple[Name, ...], Field(min_length=1)]
    """`base`, `head`, or names of layers as in model.frozen."""
    lr: Positive
    """In the place of optimizer.lr; the schedule moves all learning rates alike."""


class Optimizer(_Part):
    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "adam"
    lr: Positive = 1e-3
    """Learning rate at the start (the highest one, with `one_cycle`)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Fraction = 0.0
    """Of sgd and rmsprop."""
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Of adam and adamw."""
    smoothing: Fraction = 0.9
    """Of rmsprop: the share of the old mean square (torch calls it alpha, Keras rho)."""
    epsilon: Positive = 1e-8
    epsilon_inside_sqrt: bool = False
    """Of rmsprop: g / sqrt(v + epsilon), as Keras 3 has it, instead of g / (sqrt(v) + epsilon)."""
    groups: tuple[Group, ...] = ()
    """Layers that learn faster or slower than the rest."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("optimizer.nesterov needs optimizer.name 'sgd' and optimizer.momentum above 0")
        if self.epsilon_inside_sqrt and self.name != "rmsprop":
            raise ValueError("optimizer.epsilon_inside_sqrt is known of optimizer.name 'rmsprop' only")
        if self.momentum and self.name not in ("sgd", "rmsprop"):
            raise ValueError(f"optimizer.momentum is not used by optimizer.name {self.name!r}; set optimizer.betas")
        return self


class Schedule(_Part):
    """The learning rate over the epochs."""

    name: Literal["constant", "plateau", "cosine", "one_cycle"] = "constant"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """plateau: the learning rate is multiplied by this …"""
    patience: Count = 5
    """… after this many epochs in a row without a better value …"""
    monitor: Literal["validation/loss", "validation/accuracy"] = "validation/loss"
    """… of this metric …"""
    min_delta: Annotated[float, Field(ge=0)] = 1e-4
    """… by more than this (absolute) …"""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """… but never below this. For cosine and one_cycle: the learning rate at the end."""
    warmup: Fraction | None = None
    """The fraction of all steps in which the learning rate rises first; null is 0.3 for one_cycle and 0 for cosine."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup is not None and self.name not in ("cosine", "one_cycle"):
            raise ValueError(f"schedule.warmup is used by cosine and one_cycle only, not by {self.name!r}; remove it")
        return self


class EarlyStopping(_Part):
    """Stops the fit after `patience` epochs in a row without a better value."""

    monitor: Literal["validation/loss", "validation/accuracy"] = "validation/accuracy"
    patience: Count = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class Fit(_Part):
    epochs: Count = 10
    batch_size: Count = 128
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The exponential moving average of the weights, as decay a step (such as 0.999), is what is evaluated and kept."""
    seed: int = 0
    """Of the initial weights, the order of the images, augmentation and dropout."""
    label_smoothing: Fraction = 0.0
    clip_norm: Positive | None = None
    """The gradient's largest norm; null does not clip."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` measures on the run's own shapes and takes the fastest; fp16 needs a GPU."""
    early_stopping: EarlyStopping | None = None
    restore_best: bool = True
    """Keep the weights of the epoch with the best `early_stopping.monitor` (validation accuracy without one)."""


class Export(_Part):
    opset: Annotated[int, Field(ge=18, le=25)] = 20
    tolerance: Positive = 1e-4
    """Largest difference of a probability between torch (fp32) and onnxruntime over the whole test split."""
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 7, 64)
    """The batch sizes at which the two are compared."""


class Gate(_Part):
    """What a candidate must show before it is served."""

    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Lowest test accuracy."""
    max_drop: Fraction = 0.0
    """How far test accuracy may fall below the champion's on the same test images."""
    max_bytes: Count = 500_000_000
    """Largest model.onnx."""


class Published(_Part):
    """A figure that others published for this recipe."""

    test_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    source: str | None = None
    differs: str | None = None
    """What is done otherwise here than where the figure is from, as far as it is known."""


class Recipe(_Part):
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
        """sha256 over what decides the fit and the export: not names, description, published figures and gate."""
        content = self.model_dump(mode="json", exclude={"name", "description", "published", "gate", "model_name"})
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
        raise RecipeError(f"recipe '{name}': {_explain(_most_telling(error))}") from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors (name and model_name default to the file's name)."""
    schema = Recipe.model_json_schema()
    schema["required"] = [key for key in schema["required"] if key not in ("name", "model_name")]
    for key, model in _parts(Recipe).items():
        properties = (schema if model is Recipe else schema["$defs"][key])["properties"]
        for field, text in _attribute_docstrings(model).items():
            properties[field]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field. Pydantic could collect them too, but whenever this module is imported."""
    definition = ast.parse(inspect.getsource(model)).body[0]
    found: dict[str, str] = {}
    for field, text in itertools.pairwise(getattr(definition, "body", [])):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _most_telling(error: ValidationError) -> dict[str, Any]:
    """An unknown key explains the keys that are missing; of a value's alternatives, the one it came furthest in."""
    problems = [dict(problem) for problem in error.errors()]
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = _where(problems[0])
    same = [problem for problem in problems if _where(problem)[: len(first)] == first]

    def order(problem: dict[str, Any]) -> tuple[int, bool]:
        # Of `none` and a part with keys, keys were meant where keys are given.
        return -len(_where(problem)), problem["type"] == "literal_error" and isinstance(problem["input"], Mapping)

    return (unknown or sorted(same, key=order))[0]


def _where(problem: dict[str, Any]) -> list[Any]:
    """The path to the value as a recipe spells it: without the names of a union's alternatives."""
    tags = ("convnet", "backbone", "Normalize", "Weights", "Head")
    return [part for part in problem["loc"] if part not in tags and not str(part).startswith(("literal[", "function-"))]


def _explain(problem: dict[str, Any]) -> str:
    loc = _where(problem)
    key = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        nearest = ".".join([*(str(part) for part in loc[:-1]), *near])
        hint = f"did you mean '{nearest}'?" if near else f"known keys here are {', '.join(known)}."
        return f"key '{key}' is not known; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "missing":
            sentence = f"key '{key}' is missing; add it"
        case "union_tag_not_found":
            sentence = f"key '{key}.kind' is missing; add it, 'convnet' or 'backbone'"
        case "union_tag_invalid":
            sentence = f"{key}.kind is {problem['ctx']['tag']!r}; use one of {problem['ctx']['expected_tags']}"
        case "model_type" | "model_attributes_type":
            sentence = f"{key} is {problem['input']!r:.80}; expected keys and values"
        case "tuple_type":
            sentence = f"{key} is {problem['input']!r:.80}; write a list, as in [a, b]"
        case "value_error":
            sentence = message
        case _:
            sentence = f"{key} is {problem['input']!r:.80}; {message[0].lower()}{message[1:]}"
    return f"{sentence}."


def _keys_beside(loc: Sequence[Any]) -> list[str]:
    """The known keys of the part that `loc` points into, found by walking the annotations."""
    candidates: list[type[BaseModel]] = [Recipe]
    for part in loc[:-1]:
        if part in ("convnet", "backbone"):  # the alternative that `kind` chose: the other one's keys are no help
            candidates = [model for model in candidates if model.__name__.lower() == part]
        found = [_models(model.model_fields[part].annotation) for model in candidates if part in model.model_fields]
        candidates = [model for group in found for model in group] or candidates
    return sorted({key for model in candidates for key in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _parts(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """By name, the model and all the models in it."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for part in _models(field.annotation):
            found |= _parts(part)
    return found
