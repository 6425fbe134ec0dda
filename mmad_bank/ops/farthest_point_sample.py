"""Farthest point sampling of point clouds."""

from __future__ import annotations

from torch import Tensor

from mmad_bank._checks import ArrayLike, as_float_tensor
from mmad_bank.ops import reference


def farthest_point_sample(points: ArrayLike, n_select: int, *, start: int = 0) -> Tensor:
    """Sample each cloud by farthest-first traversal: (B, N, 3) -> int64 (B, n_select)."""
    return reference.farthest_point_sample(as_float_tensor(points, "points", ndim=3), n_select, start=start)
