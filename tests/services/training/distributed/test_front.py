from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import RecipeError
from services.training.distributed import front
from services.training.distributed.front import fit_recipe
from tests.services.training.conftest import MakeRecipe

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("workers", "sentence"),
    [
        (0, r"^--workers is 0, a whole number from 1 was expected; leave it out for one\.$"),
        (-2, r"^--workers is -2, a whole number"),
        (
            17,
            r"^--workers is 17, but a batch of recipe 'tiny' has 16 images and each worker takes a part of it; .*17 or",
        ),
    ],
)
def test_a_number_of_workers_that_cannot_be_is_refused(
    workers: int, sentence: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RecipeError, match=sentence) as caught:
        fit_recipe(make_recipe(fit={"batch_size": 16}), workers=workers)
    assert caught.value.exit_code == 2


def test_another_number_than_torchrun_starts_is_refused(tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=r"^--workers is 2, but WORLD_SIZE is 4; leave it out where torchrun"):
        fit_recipe(tiny_recipe, workers=2)


def test_one_worker_is_the_fit_of_this_process(tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(front, "train", lambda recipe, **options: seen.append((recipe, options)))
    for workers in (None, 1):
        fit_recipe(tiny_recipe, workers=workers, force=True)
    assert seen == [(tiny_recipe, {"force": True, "progress": None, "tags": None})] * 2


def test_one_worker_imports_nothing_of_several() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import services.training.distributed.front
print([name for name in set(sys.modules) - before if name.startswith(("torch.distributed.elastic", "ray"))
       or name in ("services.training.distributed.workers", "services.training.distributed.launch")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[4],
    )
    assert done.stdout.strip() == "[]"
