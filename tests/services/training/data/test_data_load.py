"""Loading by recipe: sizes, classes, places, and the real data sets where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import RecipeError
from contracts.images import ImageSpec, decode, encode_png
from contracts.recipe import Data
from services.training.data import Dataset, load
from services.training.data.digits import read as read_digits


def _config(dataset: str, height: int, width: int, channels: int, **options: Any) -> Data:
    image = {"height": height, "width": width, "channels": channels}
    return Data.model_validate({"dataset": dataset, "image": image, **options})


def _shapes(dataset: Dataset) -> list[tuple[int, ...]]:
    return [split.images.shape for split in (dataset.train, dataset.validation, dataset.test)]


def test_the_digits_need_no_file_and_no_network() -> None:
    found = load(_config("digits", 8, 8, 1))
    assert _shapes(found) == [(1294, 8, 8, 1), (144, 8, 8, 1), (359, 8, 8, 1)]
    assert found.labels == tuple("0123456789")
    assert found.overlap == 0


def test_the_digits_are_always_split_alike() -> None:
    # Written down once: champions and candidates are compared on these very images.
    found = load(_config("digits", 8, 8, 1))
    assert found.test_fingerprint == DIGITS_TEST


DIGITS_TEST = "5fb266b1a2fa212d56c9dcd6c05ab7812946d70a316d029150ed0d225d5fddd5"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_a_resized_image_is_what_a_server_makes_of_the_stored_one(channels: int, resize: str) -> None:
    config = _config("digits", 12, 20, channels)
    spec = config.image.model_copy(update={"resize": resize})
    found = load(config.model_copy(update={"image": spec}))
    # Every image of the test split must be the served tensor of one of the stored images.
    served = {decode(encode_png(image), spec).tobytes() for image in read_digits().train.images}
    assert {image.tobytes() for image in found.test.images} <= served


def test_a_resized_data_set_is_kept_in_the_cache(home: Path) -> None:
    first = load(_config("digits", 12, 12, 1))
    assert [item.name.partition("-")[0] for item in (home / "cache").iterdir()] == ["digits"]
    again = load(_config("digits", 12, 12, 1))
    np.testing.assert_array_equal(first.train.images, again.train.images)


def test_a_choice_of_classes_is_labelled_in_its_order() -> None:
    whole, found = load(_config("digits", 8, 8, 1)), load(_config("digits", 8, 8, 1, classes=("7", "3")))
    assert found.labels == ("7", "3")
    assert set(found.test.labels.tolist()) == {0, 1}
    splits = (whole.train, whole.validation, whole.test)
    sevens = {image.tobytes() for split in splits for image in split.images[split.labels == 7]}
    assert {image.tobytes() for image in found.test.images[found.test.labels == 0]} <= sevens


def test_a_class_that_is_not_in_the_data_set_is_refused() -> None:
    with pytest.raises(RecipeError, match="'ten' is not a class of digits"):
        load(_config("digits", 8, 8, 1, classes=("1", "ten")))


def test_loading_data_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys; from contracts.recipe import Data; from services.training.data import load;"
        "load(Data(dataset='digits', image={'height': 8, 'width': 8, 'channels': 1}));"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_the_real_mnist_and_fashion_mnist(name: str, data_root: Path, tmp_path: Path) -> None:
    found = load(_config(name, 28, 28, 1), root=data_root, cache=tmp_path)
    assert _shapes(found) == [(54000, 28, 28, 1), (6000, 28, 28, 1), (10000, 28, 28, 1)]
    mean, std = {"mnist": (0.1307, 0.3081), "fashion": (0.2860, 0.3530)}[name]
    pixels = np.concatenate([found.train.images, found.validation.images])
    assert pixels.mean() / 255 == pytest.approx(mean, abs=1e-4)
    assert pixels.std() / 255 == pytest.approx(std, abs=1e-4)


@pytest.mark.data
def test_the_real_cifar10(data_root: Path, tmp_path: Path) -> None:
    found = load(_config("cifar10", 32, 32, 3), root=data_root, cache=tmp_path)
    assert _shapes(found) == [(45000, 32, 32, 3), (5000, 32, 32, 3), (10000, 32, 32, 3)]
    for split, count in ((found.train, 4500), (found.validation, 500), (found.test, 1000)):
        assert np.bincount(split.labels).tolist() == [count] * 10
    pixels = np.concatenate([found.train.images, found.validation.images]).reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(axis=0) / 255, (0.4914, 0.4822, 0.4465), atol=5e-3)
    pair = load(_config("cifar10", 32, 32, 3, classes=("deer", "horse")), root=data_root, cache=tmp_path)
    assert _shapes(pair) == [(9000, 32, 32, 3), (1000, 32, 32, 3), (2000, 32, 32, 3)]


@pytest.mark.data
def test_the_real_hymenoptera(data_root: Path, tmp_path: Path) -> None:
    found = load(_config("folder", 150, 150, 3, path=str(data_root / "hymenoptera")), cache=tmp_path)
    assert found.labels == ("ants", "bees")
    assert len(found.test) == 153, "val/ is the test split"
    assert len(found.train) + len(found.validation) == 245
    assert ImageSpec(height=150, width=150, channels=3).shape == found.train.images.shape[1:]
