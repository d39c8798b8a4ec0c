"""Downloads through torchvision's classes, whole or not at all, with an error that says how to bring the files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from contracts.bundle import replace_directory
from contracts.errors import DataError


def download(name: str, class_name: str, folder: str, *, target: Path, looked_in: Path, files: str) -> None:
    """Let `torchvision.datasets.<class_name>` download into `target`/`folder`.

    It writes into a directory beside, which takes its place when it is complete: a broken download or two at once
    leave no half data set.

    Args:
        name: the data set's name in recipes.
        looked_in: where the files were looked for first, as the error says it.
        files: what to put into `looked_in`, as the error says it.

    Raises:
        DataError: no network, or the files are not what torchvision expects.
    """
    import torchvision  # seconds to import, and only a download needs it

    staged: Path | None = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".download-", dir=target))
        getattr(torchvision.datasets, class_name)(root=staged, download=True)
        replace_directory(staged / folder, target / folder)
    # torchvision says RuntimeError for a bad checksum and for mirrors that all failed, urllib OSError for the network.
    except (OSError, RuntimeError) as error:
        where = f"{looked_in}" if looked_in == target else f"{looked_in} or {target}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise DataError(
            f"data set '{name}' is not in {where} and could not be downloaded ({reason}); put {files} into {looked_in} "
            f"or point STRIDE_DATA at the directory that holds them."
        ) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
