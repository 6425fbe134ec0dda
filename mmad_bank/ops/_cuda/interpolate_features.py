"""Interpolation of features on the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_points, check_rows
from mmad_bank.ops._point_checks import check_interpolation, check_same_device
from mmad_bank.ops._torch import interpolate_features as _torch


def interpolate_features(points: Tensor, centers: Tensor, features: Tensor, k: int, power: float, eps: float) -> Tensor:
    """Spread features to points: (N, 3), (G, 3), (G, D) -> float32 (N, D).

    A centre with NaN or infinity weighs nothing; a point that holds them, or has no finite centre, gets NaN (beyond
    MAX_INTERPOLATION neighbours a NaN anywhere may give NaN everywhere).
    """
    check_points(points, "points", points)
    check_points(centers, "centers", points)
    check_rows(features, "features")
    check_same_device(features, "features", points)
    check_interpolation(len(centers), len(features), k, power, eps)
    if k > gpu.MAX_INTERPOLATION:
        return _torch.interpolate_features(points, centers, features, k, power, eps, dense=True)
    points, centers, features = points.contiguous(), centers.contiguous(), features.contiguous()
    output = torch.empty(len(points), features.shape[1], dtype=torch.float32, device=points.device)
    with gpu.current(points.device):
        device, stream = gpu.stream_of(points.device)
        gpu.native.interpolate_features(
            device, stream, points.data_ptr(), len(points), centers.data_ptr(), len(centers), features.data_ptr(),
            features.shape[1], k, power, eps, output.data_ptr(),
        )  # fmt: skip
    return output
