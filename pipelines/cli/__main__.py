"""`python -m pipelines.cli`: the `stride` command where its script is not on the path."""

from __future__ import annotations

from pipelines.cli.main import main

main()
