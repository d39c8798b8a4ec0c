"""The initial weights of a backbone: ImageNet's, a file's, a run's or a registered model's.

| `model.weights` | taken from |
|---|---|
| `imagenet` | torchvision's file, or NAME-imagenet*.safetensors, where `weight_files` looks; else downloaded |
| `{file: PATH}` | safetensors, or a state dict that torch reads with weights_only=True |
| `{run: ID}`, `{recipe: NAME}`, `{model: NAME}` | weights.safetensors of a finished run of the tracking server |
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from contracts import places
from contracts.errors import DataError, RegistryError
from contracts.recipe import Backbone, Normalize, Recipe, Weights
from contracts.registry import CHAMPION
from services.training import runs, weight_files
from services.training.networks.layers import head_of, within

_log = logging.getLogger("stride")

# These two scale torchvision's usual normalisation to -1..1 inside, where they are loaded with its own weights.
_CENTRED: Final = ("googlenet", "inception_v3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """Weights as they were found."""

    state: Mapping[str, Tensor]
    source: str
    """Where they are, as an error names it."""
    normalize: Normalize
    """What the images were scaled with when they were fitted."""
    labels: tuple[str, ...] | None = None
    """The classes that the head tells apart; None where it is not known."""


def pin(recipe: Recipe) -> Recipe:
    """The recipe with its initial weights named for good: a recipe or model by its run, a file by its sha256.

    Raises:
        DataError: the file is missing, or is not the one that the recipe names.
        RegistryError: the tracking server is away, or holds no such run or model.
    """
    if not isinstance(recipe.model, Backbone) or not isinstance(recipe.model.weights, Weights):
        return recipe
    given = recipe.model.weights
    if given.file is not None:
        pinned = given.model_copy(update={"sha256": weight_files.digest(weight_files.find(given.file))})
        if given.sha256 not in (None, pinned.sha256):
            raise DataError(
                f"model.weights.file {given.file!r} has sha256 {pinned.sha256}, expected {given.sha256}; "
                "bring that file, or remove model.weights.sha256."
            )
    else:
        pinned = Weights(run=_run_of(given), include=given.include)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": pinned})})


def load(network: nn.Module, recipe: Recipe, *, labels: tuple[str, ...]) -> Normalize | None:
    """Load a recipe's initial weights into its network, on the CPU.

    Args:
        network: As `networks.build` made it; only what `model.weights.include` says is changed.
        recipe: What says where the weights are.
        labels: The classes of the data, for a head that is taken too.

    Returns:
        What the weights were fitted with, one value a channel of the recipe's images; None where there are none.

    Raises:
        DataError: the weights are missing, damaged, or of another network: the layer and both shapes are named.
        RegistryError: see `pin`.
    """
    model = recipe.model
    if not isinstance(model, Backbone) or model.weights == "none":
        return None
    include = "base"
    if isinstance(model.weights, Weights):
        include = model.weights.include
        file = model.weights.file
        found = read_file(model, weight_files.find(file)) if file is not None else read_run(_run_of(model.weights))
    else:
        found = read_file(model, weight_files.imagenet(model.name))
    if include == "all" and found.labels is not None and found.labels != labels:
        raise DataError(
            f"{found.source}: its head tells {_list(found.labels)} apart, the data has {_list(labels)}; "
            "set model.weights.include to base."
        )
    state = _matching(network, found, everything=include == "all")
    network.load_state_dict(state, strict=False)
    _log.info("%d of %d tensors are from %s", len(state), len(network.state_dict()), found.source)
    return _for_channels(found.normalize, recipe.data.image.channels)


def read_file(model: Backbone, path: Path) -> Pretrained:
    """The state dict of a file, never unpickling anything but tensors.

    Raises:
        DataError: the file holds something else or is damaged.
    """
    return Pretrained(
        state=weight_files.read(path), source=weight_files.source(path), normalize=_imagenet_normalize(model.name)
    )


def read_run(run_id: str) -> Pretrained:
    """The weights of a finished run.

    Raises:
        RegistryError: the tracking server is away, there is no such run, it is not finished, or a file is missing.
    """
    stored = runs.read_network(run_id, instead="name another in model.weights")
    return Pretrained(
        state=stored.state,
        source=f"run {run_id}",
        normalize=Normalize(mean=stored.mean, std=stored.std),
        labels=stored.labels,
    )


def _matching(network: nn.Module, found: Pretrained, *, everything: bool) -> dict[str, Tensor]:
    """What of the found weights goes into the network; parts that they lack as a whole stay as they are, if trained."""
    head = head_of(network)
    wanted = {key: value for key, value in network.state_dict().items() if everything or not within(key, head)}
    first_conv = next((name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)
    held = {_part(name) for name, parameter in network.named_parameters() if not parameter.requires_grad}
    parts = {_part(key) for key in found.state}
    state: dict[str, Tensor] = {}
    absent: set[str] = set()
    for key, value in wanted.items():
        if key not in found.state:
            if not value.is_floating_point():  # a counter of batches, which older files lack
                continue
            if everything or _part(key) in parts | held:
                raise _missing(key, value, found)
            absent.add(_part(key))
            continue
        given = found.state[key]
        if key == f"{first_conv}.weight" and given.ndim == 4 and given.shape[1] == 3 and value.shape[1] == 1:
            # As in `networks.backbone`: a gray image is answered as the same image in RGB.
            given = given.sum(1, keepdim=True)
        if given.shape != value.shape:
            raise DataError(
                f"{found.source}: layer {key!r} has shape {_shape(given)}, this network needs {_shape(value)}; "
                "give weights of the same network, or set model.weights to none."
            )
        state[key] = given
    if not state:
        key = next(iter(wanted))
        raise _missing(key, wanted[key], found)
    for part in sorted(absent):
        _log.warning("%s has no %s.*; those layers start from random values", found.source, part)
    return state


def _missing(key: str, value: Tensor, found: Pretrained) -> DataError:
    first = next(iter(found.state))
    return DataError(
        f"{found.source}: layer {key!r} of shape {_shape(value)} is missing, what is there begins with {first!r}; "
        "give weights of the same network, or set model.weights to none."
    )


def _imagenet_normalize(name: str) -> Normalize:
    from torchvision import models

    if name in _CENTRED:
        return Normalize(mean=(0.5,) * 3, std=(0.5,) * 3)
    preset = models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    return Normalize(mean=tuple(preset.mean), std=tuple(preset.std))


def _run_of(given: Weights) -> str:
    """The id of the run that a recipe's or a registered model's name means now."""
    from mlflow.exceptions import MlflowException

    from services.training.mlflow_client import connect, registry_errors

    uri = places.tracking_uri()
    if given.run is not None:
        return given.run
    client = connect(uri)
    if given.recipe is not None:
        with registry_errors(uri, f"to look for a run of recipe '{given.recipe}'"):
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            query = f"attributes.status = 'FINISHED' and tags.`stride.recipe` = '{given.recipe}'"
            newest = client.search_runs(experiments, query, max_results=1, order_by=["attributes.start_time DESC"])
        if not newest:
            raise RegistryError(
                f"model.weights.recipe '{given.recipe}' has no finished run to start from; run "
                f"`stride train {given.recipe}` first, or set model.weights to imagenet, a file or none."
            )
        return str(newest[0].info.run_id)
    name, which = str(given.model), f"version {given.version}" if given.version else f"@{given.alias or CHAMPION}"
    with registry_errors(uri, f"to read {name} {which}"):
        try:
            if given.version is not None:
                version = client.get_model_version(name, given.version)
            else:
                version = client.get_model_version_by_alias(name, given.alias or CHAMPION)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RegistryError(
                f"model.weights.model '{name}' {which}: the registry holds no such version; see `stride history`."
            ) from error
    if not version.run_id:
        raise RegistryError(f"model.weights.model '{name}' {which} is of no run; name a run in model.weights.run.")
    return str(version.run_id)


def _for_channels(given: Normalize, channels: int) -> Normalize:
    if len(given.mean) == channels:
        return given
    # A filter summed over the colours sees one channel, so it is scaled as the colours are on average.
    mean, std = sum(given.mean) / len(given.mean), sum(given.std) / len(given.std)
    return Normalize(mean=(mean,) * channels, std=(std,) * channels)


def _part(key: str) -> str:
    return key.partition(".")[0]


def _shape(value: Tensor) -> str:
    return "x".join(str(side) for side in value.shape) or "scalar"


def _list(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (" …" if len(labels) > 5 else "")
