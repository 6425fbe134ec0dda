"""Settings of PyTorch that a caller may have changed, put aside while this package computes.

Autocast, inference mode, the default dtype and the default device are a program's own business, but results here are
float32 whatever they are: the networks were trained so, and distances of bfloat16 features are others. The device is
the one that an argument names.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from mmad_bank._internal.locks import ForkedOpen

_DEVICES = ("cpu", "cuda")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run the block without autocast and inference mode, float32 and the CPU the defaults; put them back at its end.

    Autocast, inference mode and the default device belong to a thread. The default dtype does not: other threads see
    float32 too for as long as a thread is in such a block, if it was something else.

    Example:
        >>> torch.set_default_dtype(torch.float64)
        >>> with torch.inference_mode(), plain_torch():
        ...     print(torch.zeros(1).dtype, torch.is_inference_mode_enabled())
        torch.float32 False
        >>> torch.get_default_dtype()
        torch.float64
        >>> torch.set_default_dtype(torch.float32)
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in _DEVICES:
            if _autocasts(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if _default_device() != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_DEFAULT_DTYPE.float32())
        yield


def _autocasts(device: str) -> bool:
    """Say whether autocast is on for a device."""
    try:
        return bool(torch.is_autocast_enabled(device))
    except TypeError:  # PyTorch before 2.4 has a function for each device
        return bool(torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled())


def _default_device() -> str:
    """Return the kind of device that tensors are made on where none is named."""
    return str(torch.empty(0).device.type)


class _DefaultDtype:
    """The process's default dtype, float32 for as long as any thread wants it so."""

    def __init__(self) -> None:
        self._lock = ForkedOpen()
        self._wanted = 0
        self._own = torch.float32
        self._of_thread = threading.local()  # its part of `_wanted`
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_other_threads)

    @contextmanager
    def float32(self) -> Iterator[None]:
        with self._lock:
            if self._wanted == 0:
                self._own = torch.get_default_dtype()
                if self._own != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._wanted += 1
            self._of_thread.wanted = self._wanted_here + 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                self._of_thread.wanted = self._wanted_here - 1
                self._put_back()

    @property
    def _wanted_here(self) -> int:
        return getattr(self._of_thread, "wanted", 0)

    def _put_back(self) -> None:
        if self._wanted == 0 and self._own != torch.float32:
            torch.set_default_dtype(self._own)

    def _forget_other_threads(self) -> None:
        """Leave out, in a forked child, what threads wanted that are not there."""
        if self._wanted != self._wanted_here:
            self._wanted = self._wanted_here
            self._put_back()


_DEFAULT_DTYPE = _DefaultDtype()
