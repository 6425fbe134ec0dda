"""Memory that the C library keeps after it was freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # not on Windows
        return None
    return found


def give_back_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library is glibc; elsewhere do nothing.

    What glibc keeps for later fits tensors of other sizes badly: a process that lets tensors go and makes others grows,
    though it never holds more at a time. Takes milliseconds.

    Example:
        >>> give_back_freed_memory()
    """
    trim = _trim()
    if trim is not None:
        trim(0)
