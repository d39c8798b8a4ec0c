"""The parts of a recipe about the fit: optimizer, learning rate over the epochs, and when it ends."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.recipe_part import Count, Fraction, Name, Part, Positive


class Group(Part):
    """Layers with a learning rate of their own."""

    layers: Annotated[tuple[Name, ...], Field(min_length=1)]
    """`base`, `head`, or names of layers as in model.frozen."""
    lr: Positive
    """In the place of optimizer.lr; the schedule moves all learning rates alike."""


class Optimizer(Part):
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


class Schedule(Part):
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


class EarlyStopping(Part):
    """Stops the fit after `patience` epochs in a row without a better value."""

    monitor: Literal["validation/loss", "validation/accuracy"] = "validation/accuracy"
    patience: Count = 5
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class Fit(Part):
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
