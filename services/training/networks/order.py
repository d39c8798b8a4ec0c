"""The order in which a tensor's values lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def order_of(values: Tensor) -> torch.memory_format:
    """channels_last, or contiguous where they lie in that order or in both."""
    last = values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
