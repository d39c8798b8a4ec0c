"""Memory that one large image took goes back to the system when it is answered."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1  # of <malloc.h>
_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 4 * 1024 * 1024
_KEPT: Final = 64 * 1024 * 1024


def give_back_large_blocks() -> None:
    """Have glibc keep no freed block of 4 MB or more; elsewhere than on glibc, nothing.

    By itself it starts so, but raises the bound up to 32 MB when such blocks come and go, and Pillow decodes into
    blocks of 16: 560 MB stayed in a worker that had answered one PNG of 7,000 x 7,000 with transparency.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        # Its own would stay at 128 kB then, and the heap would shrink and grow with every request.
        mallopt(_TRIM_THRESHOLD, _KEPT)
