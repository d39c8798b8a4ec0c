"""Out of memory, told in one sentence that names the batch size, whichever allocator gave up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from contracts.errors import FitError
from contracts.recipe import Recipe

# torch has a class of its own for CUDA's allocator alone: the CPU's, cuDNN's and cuBLAS' say it in a RuntimeError.
_SIGNS: Final = (
    "can't allocate memory",
    "std::bad_alloc",
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextmanager
def naming_the_batch_size(recipe: Recipe, device: str) -> Iterator[None]:
    """Turns running out of memory while a recipe is fitted on a device into one sentence.

    Raises:
        FitError: the block ran out of memory; a smaller batch size is offered.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size = recipe.fit.batch_size
        remedy = f"try --set fit.batch_size={size // 2}" if size > 1 else "try a smaller network or smaller images"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise FitError(
            f"recipe '{recipe.name}': the {device} is out of memory at fit.batch_size {size} ({reason}); {remedy}."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
