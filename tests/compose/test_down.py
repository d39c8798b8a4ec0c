"""The end: `make clean`, which is `docker compose down --volumes` and says beforehand what it takes."""

from __future__ import annotations

import re

import pytest

from tests.compose.stack import BASE_IMAGE, Stack, docker

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_without_a_yes_nothing_goes_and_with_it_nothing_is_left(stack: Stack) -> None:
    stack.files = ("docker-compose.yml",)
    before = stack.left()
    assert all(before.values())

    refused = stack.run("make", "-s", "clean", check=False)
    assert refused.returncode != 0
    assert re.search(rf"\d[\d.]*[kMG]?B  {stack.project}_artifacts\n", refused.stderr)
    assert stack.left() == before

    stack.run("make", "-s", "clean", "YES=1")
    assert stack.left() == {"containers": "", "volumes": "", "networks": ""}
    docker("image", "inspect", BASE_IMAGE)  # what was pulled stays
