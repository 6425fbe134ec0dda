"""NumPy arrays that share a tensor's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


class _Memory:
    """A tensor's memory by NumPy's array interface, which keeps the tensor alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.__array_interface__: dict[str, Any] = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": np.dtype(str(tensor.dtype).removeprefix("torch.")).str,
            "version": 3,
        }


def array_of(tensor: Tensor) -> np.ndarray:
    """Return a contiguous CPU tensor's memory as an array.

    ``Tensor.numpy`` would do, but it forbids for ever that the tensor's storage is resized, and the storage is the
    caller's.

    Example:
        >>> import torch
        >>> array_of(torch.ones(2, 3)).sum()
        np.float32(6.0)
    """
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"expected a contiguous CPU tensor, found strides {tensor.stride()} on {tensor.device}")
    if tensor.numel() == 0:  # no memory: NumPy does not take a null pointer
        return np.empty(tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch.")))
    return np.asarray(_Memory(tensor))
