"""Distances of points in plain PyTorch, without loops over points.

Squared distances are float64 sums of three products in a fixed order, so decisions and ties are the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK_BYTES = 256 << 20  # bound on one block of the float64 distance table and of its sorted copy


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Broadcast float64 squared distances of (..., 3) points."""
    dx, dy, dz = ((a[..., axis].double() - b[..., axis].double()) for axis in range(3))
    return dx * dx + dy * dy + dz * dz


def nearest(queries: Tensor, points: Tensor, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of queries with the squared distances and rows of their k nearest points."""
    step = max(1, _BLOCK_BYTES // (8 * len(points)))
    for first in range(0, len(queries), step):
        rows = slice(first, min(first + step, len(queries)))
        order = torch.sort(squared_distances(queries[rows, None], points[None]), dim=1, stable=True)
        yield rows, order.values[:, :k], order.indices[:, :k]
