"""Grouping of points around centres on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._torch import knn_group as _torch


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Nearest points of each centre: (N, 3), (G, 3) -> int64 (G, k)."""
    if k > gpu.MAX_GROUP:
        return _torch.knn_group(points, centers, k)
    points, centers = points.contiguous(), centers.contiguous()
    indices = torch.empty(len(centers), k, dtype=torch.int64, device=points.device)
    if len(centers) == 0:
        return indices
    with gpu.current(points.device):
        device, stream = gpu.stream_of(points.device)
        gpu.native.knn_group(
            device, stream, points.data_ptr(), len(points), centers.data_ptr(), len(centers), k, indices.data_ptr()
        )
    return indices
