from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training.memory import naming_the_batch_size

# A real fit whose first step does not fit: the address space is bounded a little above what the process has already.
_STARVED = """
import resource, sys
import numpy as np
import torch
from contracts.errors import FitError
from contracts.recipe import parse
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.fit import fit
from services.training.networks import ServedGraph, build
from services.training.progress import Progress

recipe = parse({"data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
                "model": {"kind": "convnet", "blocks": [{"filters": 1024, "padding": "same"}]},
                "fit": {"batch_size": 512, "precision": "fp32"}}, name="starved")
network = build(recipe.model, image=recipe.data.image, classes=2)
graph = ServedGraph(network, output="softmax", mean=(0.0,), std=(1.0,))
images = Split(images=np.zeros((1024, 8, 8, 1), np.uint8), labels=np.zeros(1024, np.int64))
plan = Plan(device="cpu", device_name="cpu", device_reason="test", precision="fp32", channels_last=True,
            precision_reason="test", threads=1)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), resource.RLIM_INFINITY))
try:
    fit(graph, images, images, recipe, plan, log=None, progress=Progress(show=False))
except FitError as error:
    print(error.message)
"""


def test_running_out_of_memory_on_the_cpu_names_the_batch_size_and_a_smaller_one() -> None:
    done = subprocess.run([sys.executable, "-c", _STARVED], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("recipe 'starved': the cpu is out of memory at fit.batch_size 512 ("), done.stderr
    assert done.stdout.endswith("); try --set fit.batch_size=256.\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_every_allocator_is_understood(error: Exception, tiny_recipe: Recipe) -> None:
    wanted = r"out of memory at fit\.batch_size 128 \(.+\); try --set fit\.batch_size=64\.$"
    with pytest.raises(FitError, match=wanted), naming_the_batch_size(tiny_recipe, "cuda"):
        raise error


def test_where_one_image_is_too_many_no_smaller_batch_is_offered(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(fit={"batch_size": 1})
    wanted = r"try a smaller network or smaller images\.$"
    with pytest.raises(FitError, match=wanted), naming_the_batch_size(recipe, "cuda"):
        raise MemoryError


def test_other_errors_stay_what_they_are(tiny_recipe: Recipe) -> None:
    with pytest.raises(RuntimeError, match="shapes"), naming_the_batch_size(tiny_recipe, "cpu"):
        raise RuntimeError("shapes cannot be multiplied")
