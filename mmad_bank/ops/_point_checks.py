"""Argument checks of the point cloud operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmad_bank._internal.checks import as_float_tensor, check_finite
from mmad_bank.errors import InputError


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
