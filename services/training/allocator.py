"""Memory that a step frees is kept for the next one, instead of going back to the kernel and coming again page by page.

A step frees all its activations, some 100 MB, and asks for the same again. glibc gives freed blocks back (those from
32 MB on at once, the others when 64 MB are free at the end of the heap), and every page of them is faulted in and
cleared again in the next step: a third of the CPU time of the MNIST network, a few hundredths of larger ones.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

# glibc's malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_NEVER: Final = -1
_TRIM: Final = 64 * 2**20
_MAPPED: Final = 65536
"""As in a program with large blocks: free bytes from which the heap is cut back, and how many blocks are mapped."""

_lock = threading.Lock()
_users = 0


@contextmanager
def reusing_memory() -> Iterator[bool]:
    """Keep freed memory in the process while this is open, and give it back at the end; yields whether that works here.

    It counts for the whole process; what is opened within it or beside it changes nothing until the last one is closed.
    Where the C library is not glibc nothing happens.
    """
    global _users  # noqa: PLW0603 - malloc has one set of options a process, so there is one count
    libc = _glibc()
    if libc is None:
        yield False
        return
    with _lock:
        _users += 1
        if _users == 1:
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
            libc.mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap, too, where they are kept
    try:
        yield True
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                libc.mallopt(_M_TRIM_THRESHOLD, _TRIM)
                libc.mallopt(_M_MMAP_MAX, _MAPPED)
                give_back()


def give_back() -> None:
    """Give back what is free now, also while freed memory is kept: between two kinds of work that need other sizes."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library, or None where it is another than glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
