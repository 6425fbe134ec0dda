"""Interpolation of features on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_points, check_rows
from mmad_bank.ops._point_checks import check_batch, check_interpolation, check_same_device
from mmad_bank.ops._torch import interpolate_features as _torch


def interpolate_features(points: Tensor, centers: Tensor, features: Tensor, k: int, power: float, eps: float) -> Tensor:
    """Spread features to points: (N, 3), (G, 3), (G, D) -> float32 (N, D), or with a leading batch axis in one launch.

    A center with NaN or infinity weighs nothing; a point that holds them, or has no finite center, gets NaN (beyond
    MAX_INTERPOLATION neighbours a NaN anywhere may give NaN everywhere).
    """
    ndim = 3 if points.ndim == 3 else 2
    check_points(points, "points", points, ndim=ndim)
    check_points(centers, "centers", points, ndim=ndim)
    check_batch(points, centers)
    check_rows(features, "features", ndim=ndim)
    check_batch(points, features, "features")
    check_same_device(features, "features", points)
    count, (center_count, dim) = points.shape[-2], features.shape[-2:]
    check_interpolation(centers.shape[-2], center_count, k, power, eps)
    if k > gpu.MAX_INTERPOLATION:
        if ndim == 2:
            return _torch.interpolate_features(points, centers, features, k, power, eps, dense=True)
        clouds = zip(points, centers, features, strict=True)
        return torch.stack([_torch.interpolate_features(*cloud, k, power, eps, dense=True) for cloud in clouds])
    points, centers, features = points.contiguous(), centers.contiguous(), features.contiguous()
    output = torch.empty(*points.shape[:-1], dim, dtype=torch.float32, device=points.device)
    with gpu.current(points.device):
        device, stream = gpu.stream_of(points.device)
        gpu.native.interpolate_features(
            device, stream, points.data_ptr(), count, centers.data_ptr(), center_count, features.data_ptr(),
            points.shape[:-2].numel(), dim, k, power, eps, output.data_ptr(),
        )  # fmt: skip
    return output
