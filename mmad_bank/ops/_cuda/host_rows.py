"""Host memory that CUDA kernels read and write in place: page-locked for as long as somebody uses it."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from mmad_bank.errors import InputError


class PageLock:
    """Holds a storage page-locked; with its last reference the lock goes, after the devices have done their work."""

    def __init__(self, rows: Tensor, native: Any) -> None:
        self.devices: set[torch.device] = set()
        # The storage lives in the arguments until then. A process that ends takes its locks with it.
        weakref.finalize(self, _unlock, rows.untyped_storage(), native, self.devices).atexit = False


_locks: weakref.WeakValueDictionary[int, PageLock] = weakref.WeakValueDictionary()  # by the address of the storage


def page_locked(rows: Tensor, device: torch.device, native: Any) -> tuple[Tensor, PageLock | None]:
    """Return CPU rows for kernels on ``device``, and the lock, to be held as long as the kernels may run.

    The rows' whole storage is locked in place, once for all its views. Where the system does not allow that (a mapping
    that cannot be written) a copy is locked. Memory that PyTorch allocated page-locked is taken as it is.
    """
    lock = _locks.get(_address(rows))
    if lock is None:
        if rows.is_pinned():
            return rows, None
        if not native.page_lock(_address(rows), rows.untyped_storage().nbytes()):
            rows = rows.clone()
            if not native.page_lock(_address(rows), rows.untyped_storage().nbytes()):
                raise InputError(f"features: {rows.nbytes} bytes of host memory cannot be page-locked for the device")
        lock = _locks[_address(rows)] = PageLock(rows, native)
    lock.devices.add(device)
    return rows, lock


def _address(rows: Tensor) -> int:
    return rows.untyped_storage().data_ptr()


def _unlock(storage: torch.UntypedStorage, native: Any, devices: set[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    native.page_unlock(storage.data_ptr())
