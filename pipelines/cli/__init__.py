"""The `stride` command. `stride --help` imports no library of the fit or of serving: each command brings its own."""

from __future__ import annotations

from pipelines.cli.main import main

__all__ = ["main"]
