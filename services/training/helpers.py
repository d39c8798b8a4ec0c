"""Threads beside the fit's own."""

from __future__ import annotations

import torch


def beside_the_fit() -> None:
    """Have torch compute in this thread alone, in what is called from it; to be called in each thread beside the fit.

    Otherwise the first larger copy in it makes a second team of OpenMP's threads. With more of them than cores, libgomp
    no longer spins where they wait for each other but sleeps at once (its manual, GOMP_SPINCOUNT), in the fit's team
    as well: from then on every step of a small network takes twice as long.
    """
    torch.set_num_threads(1)  # of this thread, and of those that have not computed yet
