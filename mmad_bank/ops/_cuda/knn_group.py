"""Grouping of points around centers on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_index
from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_points
from mmad_bank.ops._point_checks import check_batch
from mmad_bank.ops._torch import knn_group as _torch


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Nearest points of each center: (N, 3), (G, 3) -> int64 (G, k), or with a leading batch axis B, in one launch.

    A point or center with NaN has no distance. What is missing for k is the nearest point again, or row 0 where there
    is none (beyond MAX_GROUP points: any row).
    """
    ndim = 3 if points.ndim == 3 else 2
    check_points(points, "points", points, ndim=ndim)
    check_points(centers, "centers", points, ndim=ndim)
    check_batch(points, centers)
    count, center_count = points.shape[-2], centers.shape[-2]
    check_index(k, "k", 1, count, "the number of points")
    if k > gpu.MAX_GROUP:
        if ndim == 2:
            return _torch.knn_group(points, centers, k)
        return torch.stack([_torch.knn_group(one, around, k) for one, around in zip(points, centers, strict=True)])
    points, centers = points.contiguous(), centers.contiguous()
    indices = torch.empty(*centers.shape[:-1], k, dtype=torch.int64, device=points.device)
    clouds = points.shape[:-2].numel()
    with gpu.current(points.device):
        device, stream = gpu.stream_of(points.device)
        gpu.native.knn_group(
            device, stream, points.data_ptr(), count, centers.data_ptr(), center_count, clouds, k, indices.data_ptr()
        )
    return indices
