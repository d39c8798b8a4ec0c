"""`python -m benchmarks.training [--quick] [--recipes mnist,fashion] [--peers keras,…]`: `stride bench train`."""

from __future__ import annotations

import sys

from pipelines.cli.main import main

main(["bench", "train", *sys.argv[1:]])
