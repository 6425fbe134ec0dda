"""Host memory that CUDA kernels read and write in place: page-locked for as long as somebody uses it."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmad_bank.errors import InputError


class _Leaving(NamedTuple):
    """A storage that nobody uses any more but, perhaps, kernels that are still queued."""

    storage: torch.UntypedStorage
    unlock: Callable[[int], None] | None  # None: PyTorch's own page-locked memory, which only has to stay until then
    devices: set[torch.device]


class PageLock:
    """Holds a storage page-locked; with its last reference the lock goes, after the devices have done their work."""

    def __init__(self, rows: Tensor, unlock: Callable[[int], None] | None) -> None:
        self.devices: set[torch.device] = set()
        # The storage lives in the arguments until then. A process that ends takes its locks with it.
        leaving = _Leaving(rows.untyped_storage(), unlock, self.devices)
        weakref.finalize(self, _leave, leaving).atexit = False


_locks: weakref.WeakValueDictionary[int, PageLock] = weakref.WeakValueDictionary()  # by the address of the storage
_leaving: deque[_Leaving] = deque()  # its ends are safe against a finalizer that comes in between, and other threads


def page_locked(rows: Tensor, device: torch.device, native: Any) -> tuple[Tensor, PageLock]:
    """Return CPU rows for kernels on ``device``, and the lock, to be held as long as the kernels may run.

    The rows' whole storage is locked in place, once for all its views. Where the system does not allow that (a mapping
    that cannot be written) a copy is locked. Memory that PyTorch allocated page-locked is taken as it is, and held: its
    allocator would hand it out anew without waiting for kernels that it does not know of.
    """
    _release()
    lock = _locks.get(_address(rows))
    if lock is None:
        unlock = None
        if not rows.is_pinned():
            unlock = native.page_unlock
            if not native.page_lock(_address(rows), rows.untyped_storage().nbytes()):
                rows = rows.clone()
                if not native.page_lock(_address(rows), rows.untyped_storage().nbytes()):
                    raise InputError(
                        f"features: {rows.nbytes} bytes of host memory cannot be page-locked for the device"
                    )
        lock = _locks[_address(rows)] = PageLock(rows, unlock)
    lock.devices.add(device)
    return rows, lock


def _address(rows: Tensor) -> int:
    return rows.untyped_storage().data_ptr()


def _leave(leaving: _Leaving) -> None:
    _leaving.append(leaving)
    _release()


def _release() -> None:
    """Give back what waits for it, but not while this thread captures a CUDA graph.

    The garbage collector may run a finalizer at any time, and to wait for a device, or to unlock memory, would end the
    capture with an error. What is left then goes with the next lock that comes or goes.
    """
    while True:
        try:
            leaving = _leaving.popleft()
        except IndexError:
            return
        devices = [device for device in leaving.devices if device.type == "cuda"]
        if any(_capturing(device) for device in devices):
            _leaving.append(leaving)
            return
        for device in devices:
            torch.cuda.synchronize(device)
        if leaving.unlock is not None:
            leaving.unlock(leaving.storage.data_ptr())


def _capturing(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
