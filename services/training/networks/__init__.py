"""Networks from a recipe: `build` gives the network, `ServedGraph` wraps it into what is exported and evaluated."""

from __future__ import annotations

from services.training.networks.build import Counts, build, count_parameters
from services.training.networks.graph import ServedGraph

__all__ = ["Counts", "ServedGraph", "build", "count_parameters"]
