"""What all CUDA kernels share: the native module, its limits, streams, and memory that PyTorch owns."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank.errors import InputError
from mmad_bank.ops._cuda.host_rows import page_locked

MAX_NEIGHBORS = 256  # of knn: a pass over the bank finds 32, and the next one looks through those found before
MAX_INTERPOLATION = 32  # neighbours of interpolate_features: one lane of a warp each
MAX_GROUP = 128  # of knn_group
MAX_DIM = 16384  # the error bounds are derived for rows up to this long
native: Any = getattr(_core, "cuda", None)


def available(device: torch.device | str) -> bool:
    """Return whether the kernels were compiled, this device can run them, and the driver is new enough."""
    device = torch.device(device)
    if native is None or device.type != "cuda" or not torch.cuda.is_available():
        return False
    return _runs_on(with_index(device).index)


@functools.cache
def _runs_on(number: int) -> bool:
    if native.device_count() <= number:  # 0 where the driver is older than the toolkit of the build
        return False
    return covers(_core.cuda_archs, torch.cuda.get_device_capability(number))


def with_index(device: torch.device) -> torch.device:
    """Return ``cuda`` as the current device's full name, as tensors have it."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def covers(archs: str, capability: tuple[int, int]) -> bool:
    """Return whether a build for ``archs`` ("80;90a") has code for a compute capability.

    Machine code runs on its own major version from its minor version on, that of "90a" on 9.0 alone. The lowest plain
    architecture is in the build as PTX too, which newer devices compile.
    """
    own = 10 * capability[0] + capability[1]
    plain = [int(arch) for arch in archs.split(";") if arch.isdigit()]
    exact = [int(arch.rstrip("af")) for arch in archs.split(";") if arch and not arch.isdigit()]
    return own in exact or (bool(plain) and min(plain) <= own)


def stream_of(device: torch.device) -> tuple[int, int]:
    """Return the number of the device and its current stream, as the native core takes them."""
    stream = torch.cuda.current_stream(device)
    return stream.device.index, stream.cuda_stream


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device)


class StreamUse:
    """Tensors that outlive a call, for kernels on any stream.

    The first work on another stream waits for the work that made them. PyTorch's allocator is told of every stream, so
    that it does not hand out the memory anew while one still reads it. Both are needed once per stream.

    In a capture of a CUDA graph nothing is done, as nothing runs then: who replays the graph keeps the tensors alive,
    and captures when they are made (``torch.cuda.graph`` waits for the device before it captures).
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        self._device = device
        self._tensors = [tensor for tensor in tensors if tensor.is_cuda]
        self._known: set[int] = set()  # streams
        self._made: torch.cuda.Event | None = None
        if self._tensors and not torch.cuda.is_current_stream_capturing():
            self._made = torch.cuda.current_stream(device).record_event()
            self.join()

    def join(self) -> None:
        """Let the kernels that the current stream gets next read the tensors; the device must be the current one."""
        if not self._tensors:
            return
        stream = torch.cuda.current_stream(self._device)
        if stream.cuda_stream in self._known or torch.cuda.is_current_stream_capturing():
            return
        if self._made is not None:
            stream.wait_event(self._made)
        for tensor in self._tensors:
            tensor.record_stream(stream)
        self._known.add(stream.cuda_stream)


def workspace(n_bytes: int, device: torch.device) -> Tensor:
    return torch.empty(max(1, n_bytes), dtype=torch.uint8, device=device)


def aligned(rows: Tensor) -> Tensor:
    """Return rows that the kernels can read 16 bytes at a time; a view into the middle of a storage is copied."""
    rows = rows.contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def readable(rows: Tensor, device: torch.device) -> tuple[Tensor, object]:
    """Return rows that kernels on ``device`` can read, on it or in page-locked host memory, and what must be kept."""
    if rows.device == device and device.type == "cuda":
        return aligned(rows), None
    if rows.device.type != "cpu":
        raise InputError(f"features: expected a tensor on {device} or in host memory, found {rows.device}")
    return page_locked(aligned(rows), device, native)
