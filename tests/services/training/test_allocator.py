from __future__ import annotations

import resource

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
    pages = 160 * 2**20 // resource.getpagesize()
    with reusing_memory() as works:
        if not works:
            pytest.skip("the C library is not glibc")
        faults(160, 1)
        assert faults(160, 4) < 0.1 * 4 * pages
    # Given back when nobody needs it any more: it is faulted in again, but for what lies among blocks that others hold
    assert faults(160, 1) > 0.5 * pages


def test_it_lasts_until_the_last_one_is_closed() -> None:
    with reusing_memory() as works:
        if not works:
            pytest.skip("the C library is not glibc")
        with reusing_memory():
            faults(80, 1)
        assert faults(80, 4) < 0.1 * 4 * 80 * 2**20 // resource.getpagesize()


def test_it_is_closed_after_an_error_too() -> None:
    with pytest.raises(ValueError, match="a step failed"), reusing_memory():
        raise ValueError("a step failed")
    from services.training import allocator

    assert allocator._users == 0
