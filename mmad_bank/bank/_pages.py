"""Memory of mapped files."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import Tensor

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4


class MappedPages:
    """The whole pages of a tensor that is a mapped file: what can be given back, because the file has it.

    A pass over a mapped file leaves all of it in the process's resident memory. The tensor must outlive this. Where the
    system is not Linux, or the tensor is not a mapped file (whose contents would be lost), there are none.

    Example:
        >>> import torch
        >>> numbers = torch.ones(5000)
        >>> MappedPages(numbers).release()  # no mapped file: left alone
        >>> bool((numbers == 1).all())
        True
    """

    def __init__(self, mapped: Tensor) -> None:
        begin, page = mapped.data_ptr(), mmap.PAGESIZE
        first, last = -(-begin // page) * page, (begin + mapped.nbytes) // page * page
        there = mapped.device.type == "cpu" and first < last and _is_file(first, last)
        self._range = (first, last - first) if there else None

    def release(self) -> None:
        """Give the pages' memory back; what is touched later comes from the file again."""
        if self._range is not None:
            first, size = self._range
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_DONTNEED)


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
