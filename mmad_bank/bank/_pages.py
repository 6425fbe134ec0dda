"""Memory of mapped files."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4


def release_pages(mapped: Tensor) -> None:
    """Give back the memory of a mapped file's pages; what is touched later comes from the file again.

    A pass over a mapped file leaves all of it in the process's resident memory. Where the system is not Linux, or the
    tensor is not a mapped file (whose contents would be lost), nothing happens.

    Example:
        >>> import torch
        >>> numbers = torch.ones(5000)
        >>> release_pages(numbers)  # no mapped file: left alone
        >>> bool((numbers == 1).all())
        True
    """
    begin, page = mapped.data_ptr(), mmap.PAGESIZE
    first, last = -(-begin // page) * page, (begin + mapped.nbytes) // page * page
    if mapped.device.type != "cpu" or first >= last or not _is_file(first, last):
        return
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_DONTNEED)


def _is_file(first: int, last: int) -> bool:
    """Whether one mapping of a file holds these addresses."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        low, high = (int(address, 16) for address in addresses.split("-"))
        if low <= first and last <= high:
            return inode != "0"
    return False
