from __future__ import annotations

import inspect
import resource
import subprocess
import sys

import pytest
import torch

from services.training.allocator import reusing_memory


def faults(megabytes: int, times: int) -> int:
    """Pages that are faulted in while blocks of 8 MB are made, filled and freed, over and over."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        blocks = [torch.ones(2 * 2**20) for _ in range(megabytes // 8)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_without_the_kernel() -> None:
    """In a process of its own: in this one, what other tests hold lies among the blocks."""
    code = (
        "import resource, torch\nfrom services.training.allocator import give_back, reusing_memory\n"
        f"{inspect.getsource(faults)}\n"
        "with reusing_memory() as works:\n    faults(160, 4)\n    kept = faults(160, 4)\n"
        "    give_back()\n    between = faults(160, 1)\n"
        "print(int(works), kept, between, faults(160, 1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    works, kept, between, given_back = map(int, done.stdout.split())
    if not works:
        pytest.skip("the C library is not glibc")
    pages = 160 * 2**20 // resource.getpagesize()
    assert kept < 0.01 * 4 * pages  # once the heap has found its shape, in a few rounds
    assert between > 0.9 * pages  # given back on the way, where that is asked for
    # Given back when nobody needs it any more: all of it is faulted in again
    assert given_back > 0.9 * pages


def test_it_lasts_until_the_last_one_is_closed() -> None:
    with reusing_memory() as works:
        if not works:
            pytest.skip("the C library is not glibc")
        with reusing_memory():
            faults(80, 4)
        assert faults(80, 4) < 0.1 * 4 * 80 * 2**20 // resource.getpagesize()


def test_it_is_closed_after_an_error_too() -> None:
    with pytest.raises(ValueError, match="a step failed"), reusing_memory():
        raise ValueError("a step failed")
    from services.training import allocator

    assert allocator._users == 0
