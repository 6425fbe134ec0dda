"""What callers give as labels and scores: arrays or tensors, checked, as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmad_bank._internal.arrays import array_of
from mmad_bank.errors import InputError


def _as_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu")
        value = value.float() if value.dtype == torch.bfloat16 else value
        return array_of(value.contiguous())
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name}: expected an array, found rows of different lengths") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, found {array.dtype}")
    return array


def labels_of(value: Any, name: str) -> np.ndarray:
    """Return whether each label is anomalous, bool; ``name`` is what messages call them."""
    labels = _as_array(value, name)
    if labels.dtype.kind != "b" and not bool((labels >= 0).all()):
        raise InputError(f"{name}: expected 0 for normal and numbers above 0 for anomalous, found negative ones or NaN")
    return labels > 0


def scores_of(value: Any, name: str) -> np.ndarray:
    """Return finite scores as float32."""
    with np.errstate(over="ignore"):
        scores = _as_array(value, name).astype(np.float32)
    if not bool(np.isfinite(scores).all()):
        raise InputError(f"{name}: expected finite float32 scores, found NaN or infinity")
    return scores + np.float32(0.0)  # makes -0.0 a 0.0, whose integer key differs
