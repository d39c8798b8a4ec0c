"""Files of initial weights: where they are looked for, and how they are read without running what is in them."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracts import places
from contracts.errors import DataError

_log = logging.getLogger("stride")


def directories() -> list[Path]:
    """Where files of weights are looked for, in this order; torchvision keeps its own in the last one."""
    return [places.data() / "weights", places.home() / "weights", Path(torch.hub.get_dir()) / "checkpoints"]


def find(file: str) -> Path:
    """A file by its path from the working directory, else from one of `directories`.

    Raises:
        DataError: it is in none of them.
    """
    given = Path(file)
    with suppress(RuntimeError):  # ~ of a user who does not exist is a name like any other, and not there
        given = given.expanduser()
    for place in (Path(), *directories()):
        if (place / given).is_file():
            return place / given
    looked = "" if given.is_absolute() else f" in {', '.join(str(place) for place in (Path.cwd(), *directories()))}"
    raise DataError(f"model.weights.file {file!r} is not there{looked}; give the path of an existing file.")


def imagenet(name: str) -> Path:
    """torchvision's ImageNet weights of a network: the file where it is, or downloaded into $STRIDE_HOME/weights.

    Raises:
        DataError: it is in none of `directories` and cannot be downloaded.
    """
    from torchvision import models

    url: str = models.get_model_weights(name).DEFAULT.url  # type: ignore[attr-defined]
    file = url.rpartition("/")[2]
    for directory in directories():
        if (directory / file).is_file():
            return directory / file
        if near := sorted(directory.glob(f"{name}-imagenet*.safetensors")):
            return near[0]
    target = places.home() / "weights"
    try:
        target.mkdir(parents=True, exist_ok=True)
        _log.info("model.weights: %s is downloaded to %s", file, target)
        # The end of the name is the start of the sha256; an incomplete file never gets this name.
        torch.hub.download_url_to_file(url, str(target / file), file.rpartition("-")[2].split(".")[0], progress=False)
    except (OSError, RuntimeError) as error:
        looked = ", ".join(str(directory) for directory in directories())
        raise DataError(
            f"model.weights 'imagenet' of {name}: neither {file} nor {name}-imagenet*.safetensors is in {looked}, and "
            f"it could not be downloaded ({_line(error)}); put the file from {url} into one of them, or set "
            "model.weights to none."
        ) from error
    return target / file


def source(path: Path) -> str:
    """A file as an error names it."""
    return f"weights {path}"


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, never unpickling anything but tensors.

    Raises:
        DataError: the file holds something else or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors' error is a plain Exception, and torch has five kinds of them for damage
        # torch's own words advise to unpickle everything, which runs whatever the file says.
        raise DataError(
            f"{source(path)}: it is damaged, or holds more than tensors, which is not unpickled for safety "
            f"({type(error).__name__}); bring the file again, or save the network's state_dict() with safetensors."
        ) from error
    # Training scripts often keep the state dict beside the epoch and the optimizer.
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f"{source(path)}: it is no state dict, names with a tensor each; save the network's state_dict()."
        )
    return state


def digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
