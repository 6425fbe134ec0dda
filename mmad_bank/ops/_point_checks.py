"""Argument checks of the point cloud operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from mmad_bank._internal.checks import as_float_tensor, check_finite, check_index
from mmad_bank.errors import InputError

_MAX_POWER = 7.0  # beyond, d**power of float32 coordinates can leave float64
_MIN_EPS = 1e-300  # below, 1 / eps would


def as_points(value: Any, name: str, *, ndim: int | tuple[int, ...] = 2) -> Tensor:
    """Return ``value`` as a float32 tensor of finite points with three columns, at least one of them."""
    points = as_float_tensor(value, name, ndim=ndim)
    check_columns(points, name)
    check_finite(points.flatten(0, -2), name)
    return points


def check_columns(points: Tensor, name: str) -> None:
    """Raise an error unless there is at least one point and every point has three coordinates."""
    if points.shape[-1] != 3:
        raise InputError(f"{name}: expected 3 columns (x, y, z), found shape {tuple(points.shape)}")
    if points.numel() == 0:
        raise InputError(f"{name}: expected at least one point, found shape {tuple(points.shape)}")


def check_same_device(tensor: Tensor, name: str, points: Tensor) -> None:
    """Raise an error unless ``tensor`` lives where ``points`` do."""
    if tensor.device != points.device:
        raise InputError(f"{name}: expected a tensor on {points.device} as points are, found {tensor.device}")


def check_batch(points: Tensor, rows: Tensor, name: str = "centers") -> None:
    """Raise an error unless there is one set of centers, or of other rows, for every cloud."""
    if points.ndim != rows.ndim or points.shape[:-2] != rows.shape[:-2]:
        raise InputError(
            f"{name}: expected the batch dimensions of points, {tuple(points.shape)}, found {tuple(rows.shape)}"
        )


def check_interpolation(n_centers: int, n_rows: int, k: int, power: float, eps: float) -> None:
    """Refuse numbers out of range, and features that are not one row per centre."""
    if n_rows != n_centers:
        raise InputError(f"features: expected {n_centers} rows, one per centre, found {n_rows}")
    check_index(k, "k", 1, n_centers, "the number of centers")
    _check_number(power, "power", 0.0, _MAX_POWER)
    _check_number(eps, "eps", _MIN_EPS, math.inf)


def _check_number(value: float, name: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InputError(f"{name}: expected a number, found {value!r}")
    if not (0.0 < value < math.inf and low <= value <= high):
        limits = f" of at most {high:g}" if high < math.inf else f" of at least {low:g}"
        raise InputError(f"{name}: expected a positive finite number{limits}, found {value}")
