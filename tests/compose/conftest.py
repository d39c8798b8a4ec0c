"""One stack for all tests of this directory, brought up from a clean copy of the repository under a name of its own.

`make test-compose` runs them, in the order in which they stand. They need a Docker engine, its compose plugin, and the
base images; containers, volumes and networks are removed at the end, images are kept so that the next build is warm.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.stack import Stack, clean_copy, free_ports, listening


@pytest.fixture(scope="session")
def listening_before() -> set[tuple[str, int]]:
    return listening()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, listening_before: set[tuple[str, int]]) -> Iterator[Stack]:
    """The stack, built and up."""
    directory = clean_copy(tmp_path_factory.mktemp("clone"))
    made = Stack(directory, f"stride-test-{os.getpid()}", free_ports())
    try:
        made.compose("build")
        made.up()
        yield made
    finally:
        made.files = ("docker-compose.yml",)
        made.remove()


@pytest.fixture(scope="session")
def digits() -> list[tuple[bytes, str]]:
    """Images of the digits' test split as PNG, with their labels."""
    from contracts import images
    from pipelines import recipe_files
    from services.training.data import load

    dataset = load(recipe_files.load("digits").data)
    pairs = zip(dataset.test.images[:40], dataset.test.labels[:40], strict=True)
    return [(images.encode_png(image), dataset.labels[int(label)]) for image, label in pairs]
