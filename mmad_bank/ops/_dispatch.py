"""Which implementation of an op runs where: devices, what is free on them, threads, and the native CUDA kernels."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from mmad_bank.errors import InputError

_SHARE = 0.9  # of the free memory that is counted on: allocators leave gaps


def resolve_device(device: torch.device | str) -> torch.device:
    """Return a device as tensors name it (``cuda`` is ``cuda:0`` there), or say that it cannot be used."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"device: {str(device)!r} cannot be used ({reason})") from error


def place_of(rows: torch.Tensor, device: torch.device | str | None) -> torch.device:
    """Return where to select from rows: where they are by default; from host memory, any device can."""
    place = rows.device if device is None else resolve_device(device)
    if rows.device not in (place, torch.device("cpu")):
        raise InputError(f"features: expected a tensor on {place} or in host memory, found {rows.device}")
    return place


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a CUDA device, with what PyTorch holds in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_SHARE * (free + held))


def selection_fits(count: int, dim: int, n_select: int, device: torch.device) -> bool:
    """Return whether a selection from ``count`` float32 rows fits on a device, rows and all.

    That is the rows, their 16-bit copy and about 170 bytes per row for the selection; then a 16-bit copy of the
    selected rows, and the vectors of the bank that is made of them. Where it does not, the rows can stay in host
    memory.
    """
    if device.type != "cuda":
        return True
    return count * (6 * dim + 170) + n_select * (6 * dim + 32) <= free_memory(device)


def cuda_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the native CUDA operations if it was built and can run on this device."""
    if device.type != "cuda":
        return None
    module = importlib.import_module("mmad_bank.ops._cuda")  # which needs this module
    return module if module.available(device) else None


def thread_count() -> int:
    """Return PyTorch's number of threads, with which the core works too.

    From the first call on, a process forked from this one works with one thread. The core would manage with more, but
    PyTorch's own threads are not there in a forked child, and operators that share their work out would wait for them
    for ever.
    """
    _mind_forks()
    return torch.get_num_threads()


@functools.cache
def _mind_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_work_alone)


def _work_alone() -> None:
    torch.set_num_threads(1)
