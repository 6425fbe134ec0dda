"""Point cloud operations in plain PyTorch, without loops over points: any device that PyTorch runs on.

Squared distances are float64 sums of three products in a fixed order, so decisions and ties are the reference's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from mmad_bank._internal.precision import exact_float32

_BLOCK_BYTES = 256 << 20  # bound on one block of the float64 distance table and of its sorted copy


def cuda_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the native CUDA operations if it was built and can run on this device."""
    if device.type != "cuda":
        return None
    try:
        module = importlib.import_module("mmad_bank.ops._cuda")
    except ImportError:
        return None
    return module if module.available(device) else None


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Broadcast float64 squared distances of (..., 3) points."""
    dx, dy, dz = ((a[..., axis].double() - b[..., axis].double()) for axis in range(3))
    return dx * dx + dy * dy + dz * dz


def farthest_point_sample(points: Tensor, eligible: Tensor, n_select: int, start: int) -> Tensor:
    """Sample all clouds at a time: points (B, N, 3), eligible bool (B, N) -> int64 (B, n_select)."""
    nearest = torch.where(eligible, torch.inf, -1.0).double()
    chosen = torch.full((len(points), n_select), start, dtype=torch.int64, device=points.device)
    for i in range(1, n_select):
        last = chosen[:, i - 1 : i]
        nearest.scatter_(1, last, -1.0)
        centre = points.gather(1, last[..., None].expand(-1, -1, 3))
        nearest = torch.minimum(nearest, squared_distances(points, centre))
        chosen[:, i] = nearest.argmax(1)
    return chosen


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Nearest points of each centre: (N, 3), (G, 3) -> int64 (G, k)."""
    return torch.cat([index for _, _, index in _nearest(centers, points, k)])


def interpolate_features(
    points: Tensor, centers: Tensor, features: Tensor, k: int, power: float, eps: float, *, dense: bool
) -> Tensor:
    """Spread features to points; ``dense`` turns the gather into a matrix product with the full table of weights."""
    output = torch.empty(len(points), features.shape[1], dtype=torch.float32, device=features.device)
    for rows, squared, index in _nearest(points, centers, k):
        weights = 1.0 / (squared ** (power / 2) + eps)
        weights = (weights / weights.sum(1, keepdim=True)).float()
        if dense:
            table = torch.zeros(len(index), len(centers), dtype=torch.float32, device=features.device)
            with exact_float32(features.device):
                torch.mm(table.scatter_(1, index, weights), features, out=output[rows])
            continue
        part = output[rows].copy_(weights[:, :1] * features[index[:, 0]])
        for j in range(1, k):
            part += weights[:, j : j + 1] * features[index[:, j]]
    return output


def _nearest(queries: Tensor, points: Tensor, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of queries with the squared distances and rows of their k nearest points."""
    step = max(1, _BLOCK_BYTES // (8 * len(points)))
    for first in range(0, len(queries), step):
        rows = slice(first, min(first + step, len(queries)))
        order = torch.sort(squared_distances(queries[rows, None], points[None]), dim=1, stable=True)
        yield rows, order.values[:, :k], order.indices[:, :k]
