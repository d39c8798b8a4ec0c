"""The last good bundles on disk: what is served when the registry is away.

$STRIDE_HOME/serving/<model>/
  state.json       the version that is served: {"version", "digest", "promoted_at", "follows"}
  <digest>/        a bundle, whole and verified
  .lock            held while the above changes: several workers share the directory
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from contracts import bundle
from contracts.bundle import Bundle
from contracts.errors import BundleError
from services.inference import logs
from services.inference.pins import Pin

STATE: Final = "state.json"
_KEPT: Final = 3
"""Bundles kept per model: the served one, the one before (another worker may be loading it), one to roll back to."""
_ABANDONED_S: Final = 3600
"""A fetch that has not ended by then was killed."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Served:
    """Which version of a model was served last."""

    name: str
    version: str
    digest: str
    promoted_at: int
    """Milliseconds since the epoch, 0 when unknown."""
    follows: str = str(Pin())
    """The pin that it was served for. A start without the registry serves it for the same one only."""


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root

    def installed(self, name: str, digest: str) -> Bundle | None:
        """The verified bundle, None when it is not here or no longer whole."""
        path = self._directory(name) / digest
        if not path.is_dir():
            return None
        try:
            found = bundle.read(path)
        except BundleError as error:
            logs.warning("stored_bundle_broken", model=name, reason=error.message)
            return None
        return found if found.digest == digest else None

    def install(self, name: str, digest: str, fetch: Callable[[Path], Path]) -> Bundle:
        """The bundle with this digest, fetched unless it is already here.

        Args:
            fetch: writes the bundle below the directory it is given and returns where.

        Raises:
            BundleError: what was fetched is not whole, or not the bundle that the digest names.
        """
        if not _DIGEST.fullmatch(digest):  # it becomes a directory's name
            raise BundleError(f"model {name!r}: its bundle's sha256 is {digest!r}; 64 hexadecimal digits are expected.")
        if (found := self.installed(name, digest)) is not None:
            return found
        directory = self._directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=directory))
        try:
            fetched = _read(name, fetch(staging))
            if fetched.digest != digest:
                detail = f"its bundle has sha256 {fetched.digest[:12]}…, the registry says {digest[:12]}…"
                raise BundleError(f"model {name!r}: {detail}; promote it again.")
            with self._lock(name):
                # Another worker may have been faster; a whole bundle is never replaced, a broken one always.
                if (found := self.installed(name, digest)) is None:
                    bundle.replace_directory(fetched.path, directory / digest)
                    found = bundle.read(directory / digest)
                    os.utime(directory / digest)
                    # Here too: what is refused, or only tried as a challenger, is never remembered.
                    self._forget(name)
            return found
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def remember(self, served: Served) -> None:
        """Write down what is served now, and forget bundles that no longer matter."""
        directory = self._directory(served.name)
        with self._lock(served.name):
            descriptor, staged = tempfile.mkstemp(prefix=".state-", dir=directory)
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(served), file)
                file.flush()
                os.fsync(file.fileno())
            Path(staged).replace(directory / STATE)
            os.utime(directory / served.digest)
            self._forget(served.name)
            for staging in directory.glob(".staging-*"):
                with contextlib.suppress(FileNotFoundError):  # its worker has just ended it
                    if time.time() - staging.stat().st_mtime > _ABANDONED_S:
                        shutil.rmtree(staging, ignore_errors=True)

    def remembered(self) -> list[Served]:
        """Of every model, what was served last."""
        found = []
        for state in sorted(self.root.glob(f"*/{STATE}")):
            try:
                content = json.loads(state.read_text())
                served = Served(
                    name=unquote(state.parent.name),
                    version=str(content["version"]),
                    digest=str(content["digest"]),
                    promoted_at=int(content["promoted_at"]),
                    follows=str(content.get("follows") or Pin()),
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                logs.warning("state_unreadable", file=str(state), reason=str(error))
            else:
                found.append(served)
        return found

    def _forget(self, name: str) -> None:
        """Remove bundles but for the one that was served last and the newest of the others; under the lock."""
        kept = {served.digest for served in self.remembered() if served.name == name}
        bundles = [path for path in self._directory(name).iterdir() if _DIGEST.fullmatch(path.name)]
        for old in sorted(bundles, key=lambda path: (path.name in kept, path.stat().st_mtime), reverse=True)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def _directory(self, name: str) -> Path:
        # Quoted, a name can neither leave the root nor hide in it.
        return self.root / quote(name, safe="").replace(".", "%2E")

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        directory = self._directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a crash
            yield


def _read(name: str, path: Path) -> Bundle:
    try:
        return bundle.read(path)
    except BundleError as error:  # told of the model: the temporary directory means nothing to the reader
        reason = error.message.removeprefix(f"bundle {path}: ").rpartition("; ")[0] or error.message
        raise BundleError(f"model {name!r}: the bundle that was fetched is broken: {reason}; ship it again.") from error
