"""What this machine has for a process: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

PROCESS_BYTES = 350 << 20
"""Bytes that a process holds of its own once Python has loaded PyTorch, measured."""


def cores() -> int:
    """Return the number of cores that this process may use.

    Example:
        >>> cores() >= 1
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's if that has less.

    Example:
        >>> machine_memory() > 0
        True
    """
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(whole, int(text))
    return whole
