"""What a user gets wrong is one sentence that says what and where, before a run is opened and any epoch is fitted."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from safetensors.torch import save_file

from contracts.errors import DataError, RecipeError, StrideError
from contracts.recipe import Recipe, parse
from pipelines.ship import ship
from services.training.data.cifar10 import LABELS

Make = Callable[[Path], dict[str, Any]]
"""Puts what is wrong under a directory and gives the parts of the recipe that lead to it."""


def a_recipe(**parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "model": {"kind": "convnet", "blocks": [{"filters": 2}]},
        "fit": {"epochs": 1, "precision": "fp32"},
        **parts,
    }
    return parse(content, name="bad")


def data_of(dataset: str, *, side: int, channels: int, **options: Any) -> dict[str, Any]:
    return {"dataset": dataset, "image": {"height": side, "width": side, "channels": channels}, **options}


def photos(root: Path, *classes: str, **options: Any) -> dict[str, Any]:
    """Six photographs of each class, which may be in a split: `train/cats`."""
    for number, name in enumerate(classes or ("cats", "dogs")):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(6):
            noise = np.random.default_rng([number, index]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "photos" / name / f"{index}.png")
    return {"data": data_of("folder", side=8, channels=3, path=str(root / "photos"), **options)}


def one_class(root: Path) -> dict[str, Any]:
    return photos(root, "cats")


def an_empty_class(root: Path) -> dict[str, Any]:
    parts = photos(root)
    (root / "photos" / "elks").mkdir()
    return parts


def a_corrupt_image(root: Path) -> dict[str, Any]:
    parts = photos(root, on_bad_image="fail")
    path = root / "photos" / "cats" / "3.png"
    path.write_bytes(path.read_bytes()[:100])
    return parts


def a_class_of_corrupt_images(root: Path) -> dict[str, Any]:
    parts = photos(root)
    (root / "photos" / "elks").mkdir()
    (root / "photos" / "elks" / "0.jpg").write_bytes(b"no image")
    return parts


def a_class_that_the_test_lacks(root: Path) -> dict[str, Any]:
    return photos(root, "train/cats", "train/dogs", "train/elks", "test/cats", "test/dogs")


def a_class_of_one_image(root: Path) -> dict[str, Any]:
    parts = photos(root)
    (root / "photos" / "elks").mkdir()
    (root / "photos" / "cats" / "0.png").rename(root / "photos" / "elks" / "0.png")
    return parts


def an_idx_label_out_of_range(root: Path) -> dict[str, Any]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        labels = np.arange(20, dtype=np.uint8) % 10
        labels[7] = 11 if prefix == "train" else 7
        for name, array in (("images-idx3", np.zeros((20, 28, 28), dtype=np.uint8)), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (raw / f"{prefix}-{name}-ubyte").write_bytes(head + array.tobytes())
    return {"data": data_of("mnist", side=28, channels=1)}


def a_cifar_image_of_no_class(root: Path) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="JPEG")
    with tarfile.open(root / "cifar10-jpeg.tar.gz", "w:gz") as archive:
        for name in (*LABELS, "zebra"):
            member = tarfile.TarInfo(f"cifar10-jpeg/train/{name}/0000.jpg")
            member.size = len(buffer.getvalue())
            archive.addfile(member, io.BytesIO(buffer.getvalue()))
    return {"data": data_of("cifar10", side=32, channels=3)}


def backbone(root: Path, **model: Any) -> dict[str, Any]:
    data = {**photos(root)["data"], "image": {"height": 32, "width": 32, "channels": 3}}
    return {"data": data, "model": {"kind": "backbone", "name": "squeezenet1_1", **model}}


def an_unknown_layer_to_unfreeze(root: Path) -> dict[str, Any]:
    return backbone(root, trainable_from="features.99")


def an_unknown_layer_to_hold(root: Path) -> dict[str, Any]:
    return backbone(root, frozen=["block3"])


def an_unknown_layer_that_learns_slower(root: Path) -> dict[str, Any]:
    return {**backbone(root), "optimizer": {"groups": [{"layers": ["features.1l"], "lr": 0.1}]}}


def weights_of_another_shape(root: Path) -> dict[str, Any]:
    from torchvision.models import squeezenet1_0

    save_file(squeezenet1_0().state_dict(), root / "other.safetensors")
    return backbone(root, weights={"file": str(root / "other.safetensors")})


def weights_that_are_missing(root: Path) -> dict[str, Any]:
    return backbone(root, weights={"file": str(root / "nowhere.safetensors")})


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (one_class, DataError, r"photos has one class, 'cats', expected at least two; add another class\."),
        (an_empty_class, DataError, r"class 'elks' has no images in .*photos/elks; add some or remove the directory\."),
        (a_corrupt_image, DataError, r"photos/cats/3\.png cannot be used: the image could not be decoded"),
        (a_class_of_corrupt_images, DataError, r"class 'elks' has no usable image \(.*elks/0\.jpg: .*; add images"),
        (a_class_that_the_test_lacks, DataError, r"photos: class 'elks' of train/ is not in test/; every split"),
        (a_class_of_one_image, DataError, r"class 'elks' has 1 image to cut the test split from; give it at least two"),
        (an_idx_label_out_of_range, DataError, r"train-labels-idx1-ubyte: image 7 has the label 11, expected 0-9; "),
        (a_cifar_image_of_no_class, DataError, r"train/zebra/0000\.jpg is of class 'zebra', expected one of airplane"),
        (an_unknown_layer_to_unfreeze, RecipeError, r"model\.trainable_from 'features\.99' is not a layer of this net"),
        (an_unknown_layer_to_hold, RecipeError, r"model\.frozen 'block3' is not a layer of this network; "),
        (an_unknown_layer_that_learns_slower, RecipeError, r"optimizer\.groups.* 'features\.1l' is not a layer"),
        (weights_of_another_shape, DataError, r"other\.safetensors: layer '\S+' has shape \S+, this network needs"),
        (weights_that_are_missing, DataError, r"model\.weights\.file '.*nowhere\.safetensors' is not there; give"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_told_in_one_sentence_and_nothing_is_logged(
    make: Make,
    kind: type[StrideError],
    sentence: str,
    tmp_path: Path,
    embedded_tracking: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STRIDE_DATA", str(tmp_path))
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    torch.set_num_threads(1)
    with pytest.raises(kind, match=rf"^train bad: .*{sentence}") as told:
        ship(a_recipe(**make(tmp_path)), progress=False)
    assert "\n" not in told.value.message
    assert told.value.message.endswith(".")
    client = MlflowClient(embedded_tracking)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert client.search_runs(experiments) == []
