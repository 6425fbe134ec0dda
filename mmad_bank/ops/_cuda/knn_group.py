"""Grouping of points around centres on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_points
from mmad_bank.ops._torch import knn_group as _torch


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Nearest points of each centre: (N, 3), (G, 3) -> int64 (G, k).

    A point or centre with NaN has no distance. What is missing for k is the nearest point again, or row 0 where there
    is none (beyond MAX_GROUP points: any row).
    """
    check_points(points, "points", points)
    check_points(centers, "centers", points)
    check_index(k, "k", 1, len(points), "the number of points")
    if k > gpu.MAX_GROUP:
        return _torch.knn_group(points, centers, k)
    points, centers = points.contiguous(), centers.contiguous()
    indices = torch.empty(len(centers), k, dtype=torch.int64, device=points.device)
    with gpu.current(points.device):
        device, stream = gpu.stream_of(points.device)
        gpu.native.knn_group(
            device, stream, points.data_ptr(), len(points), centers.data_ptr(), len(centers), k, indices.data_ptr()
        )
    return indices
