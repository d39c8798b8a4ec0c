"""One stack for all tests of this directory, brought up from a clean copy of the repository under a name of its own.

`make test-compose` runs them. They need a Docker engine, its compose plugin, and the base images; containers, volumes
and networks are removed at the end, images are kept so that the next build is warm.

The modules run in the order below: first the stack as it comes up, with a job under way meanwhile, then what happens
when parts of it die, then the whole brought down and up again behind nginx, with API keys and Prometheus. Each module
also runs by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.compose.job import Job
from tests.compose.running import Image, Restarted, held
from tests.compose.stack import Stack, clean_copy, free_ports, listening

MODULES: Final = (
    *("test_up", "test_hardening", "test_network", "test_images", "test_logs", "test_job", "test_faults"),
    *("test_restart", "test_edge", "test_monitoring", "test_day_two", "test_down"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if item.path.parent == here]
    ordered = sorted(ours, key=lambda item: MODULES.index(item.path.stem))
    items[:] = [item for item in items if item.path.parent != here] + ordered


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
        made.remove()


@pytest.fixture(scope="session")
def job(stack: Stack) -> Job:
    """A job that ships another model, posted to the training service; it runs while other things are looked at."""
    return Job.post(stack, kind="ship", set={"model_name": "more-digits"})


@pytest.fixture(scope="session")
def restarted(stack: Stack, digits: list[Image], tmp_path_factory: pytest.TempPathFactory) -> Restarted:
    """The same stack after `down` and `up`: behind nginx, asking for API keys, and watched by Prometheus."""
    before = held(stack, digits)
    stack.compose("down")
    assert stack.containers() == {}

    keys = tmp_path_factory.mktemp("api-keys")
    keys.chmod(0o755)  # read by the container's user
    stack.require_keys(keys)
    stack.environment["STRIDE_PREDICTION_LOG"] = "1"
    stack.files = ("docker-compose.yml", "infra/compose.edge.yml")
    stack.up("edge", "training", "prometheus", profile="monitoring")
    return Restarted(stack, before)


@pytest.fixture(scope="session")
def digits() -> list[Image]:
    """Images of the digits' test split as PNG, with their labels."""
    from contracts import images
    from pipelines import recipe_files
    from services.training.data import load

    dataset = load(recipe_files.load("digits").data)
    pairs = zip(dataset.test.images[:40], dataset.test.labels[:40], strict=True)
    return [(images.encode_png(image), dataset.labels[int(label)]) for image, label in pairs]
