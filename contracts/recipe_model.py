"""The parts of a recipe about the network: blocks of its own, or a backbone with its initial weights and its head."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.recipe_part import Count, Fraction, Name, Part, Positive, Slug


class Block(Part):
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


class Head(Part):
    """Dense layers, and the output: softmax over n classes, or one sigmoid unit for two."""

    units: tuple[Count, ...] = ()
    activation: Literal["relu", "gelu", "silu", "leaky_relu", "tanh"] = "relu"
    dropout: Fraction = 0.0
    """After every dense layer but the last."""
    pool: Literal["flatten", "average", "max"] = "flatten"
    """How the feature map becomes a vector."""
    output: Literal["softmax", "sigmoid"] = "softmax"


class Convnet(Part):
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


class Weights(Part):
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


class Backbone(Part):
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
