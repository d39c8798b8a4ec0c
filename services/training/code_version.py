"""The version of the code that decides a fit: the package's version and a digest of the sources.

Git is not asked: a container has none, and an uncommitted change counts as much as a committed one.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_PACKAGES: Final = ("contracts", "services/training")
_DECIDES_NOTHING: Final = "services/training/jobs/"
"""The service that starts fits: edited between a kill and the next start, it must not make them begin anew."""


@cache  # what runs is what was loaded: a file that is edited later does not change it
def code_version() -> str:
    """`0.1.0+3f9a0c21b7de`: a run is reused only where this is equal, so changed code never reuses an old run."""
    try:
        version = metadata.version("stride")
    except metadata.PackageNotFoundError:  # run from a checkout or an image that only copied the sources
        version = "0.0.0"
    return f"{version}+{source_digest(_ROOT)[:12]}"


def source_digest(root: Path) -> str:
    """sha256 over the relative paths and the bytes of every .py file of the packages that decide a fit."""
    files = (path for package in _PACKAGES for path in (root / package).rglob("*.py"))
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        if name.startswith(_DECIDES_NOTHING):
            continue
        content = path.read_bytes()
        # The lengths keep two files from reading like one, and one like two.
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
