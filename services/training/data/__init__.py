"""Labelled images: read, brought to one size, split, checked and fingerprinted.

Where a data set brings splits of its own they are used. What is missing is cut out of its training images, stratified
and by `data.split_seed`:

| it brings | test | validation |
|---|---|---|
| train | `data.test` of train | `data.validation` of the rest |
| train, test | test | `data.validation` of train |
| train, validation | **validation** | `data.validation` of train |
| train, validation, test | test | validation |

A validation split without a test split is what others report their figures on, so it is the test here, and nothing is
chosen by looking at it: a folder with train/ and val/ gives a figure that can be compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contracts import places
from contracts.recipe import Data
from services.training.data.assemble import assemble
from services.training.data.classes import indices_of, select
from services.training.data.dataset import Dataset, Skipped, Source, Split
from services.training.data.decoding import resize_all

__all__ = ["Dataset", "Skipped", "Split", "load"]


def load(config: Data, *, root: Path | None = None, cache: Path | None = None) -> Dataset:
    """Load the data set of a recipe.

    Args:
        root: the directory that holds the data sets, never written to; STRIDE_DATA by default.
        cache: the directory for decoded images; $STRIDE_HOME/cache by default.

    Raises:
        DataError: the data set is missing, empty, damaged, too small to split, or overlaps with `on_overlap: fail`.
        RecipeError: a class of `config.classes` is not in it.
    """
    return assemble(_read(config, root or places.data(), cache or places.home() / "cache"), config)


def _read(config: Data, root: Path, cache: Path) -> Source:
    # Each reader brings its own library along; only the one that is used is imported.
    if config.dataset == "folder":
        from services.training.data import folder

        return folder.read(config, cache)
    if config.dataset == "digits":
        from services.training.data import digits as uci_digits

        source = uci_digits.read()
    elif config.dataset == "cifar10":
        from services.training.data import cifar10

        source = cifar10.read(root, cache)
    else:
        from services.training.data import standard

        source = standard.read(config.dataset, root)
    return _fit_to(source, config, cache)


def _fit_to(source: Source, config: Data, cache: Path) -> Source:
    """Bring a data set of fixed size to the recipe's classes and size; classes first, so that only they are resized."""
    train, test, labels = source.train, source.test, source.labels
    if config.classes is not None:
        labels, chosen = config.classes, indices_of(config.classes, source.labels, name=source.name)
        train, test = select(train, chosen), test and select(test, chosen)
    train = replace(train, images=resize_all(train.images, config.image, cache=cache, name=source.name))
    if test is not None:
        test = replace(test, images=resize_all(test.images, config.image, cache=cache, name=source.name))
    return replace(source, labels=labels, train=train, test=test)
