"""Inverse-distance interpolation of group features to points."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, as_features, check_finite
from mmad_bank._internal.precision import exact_float32
from mmad_bank.ops._dispatch import cuda_kernels, thread_count
from mmad_bank.ops._point_checks import as_points, check_interpolation, check_same_device
from mmad_bank.ops._torch import interpolate_features as _torch

_GATHER_UP_TO = 64  # neighbours; beyond, one matrix product with the whole table of weights is faster than the gather
_TABLE_BYTES = 64 << 20  # bound on a block of that table


def interpolate_features(
    points: ArrayLike, centers: ArrayLike, features: ArrayLike, *, k: int = 3, power: float = 2, eps: float = 1e-8
) -> Tensor:
    """Spread features of G centres to N points by inverse-distance weighting over the k nearest centres of each point.

    A centre at distance d weighs 1 / (d**power + eps), divided by the sum over the k centres. ``k=3, power=2`` is what
    the published code of M3DM and CFM computes (PointNet++, Qi et al. 2017, eq. 2); ``k=G, power=1`` is M3DM's eq. 1. A
    point that lies on a centre (d = 0) gives it the weight 1 / eps like any other: nearly all.

    The result is not differentiable: gradients stop here.

    Args:
        points: (N, 3) coordinates, finite, in any unit. float64 is rounded to float32.
        centers: (G, 3), in the same unit and on the same device.
        features: (G, D), one row per centre; float16 and bfloat16 widen to float32.
        k: Number of neighbours per point, 1 to G; the nearest are found exactly, equal distances by the lowest row.
        power: Exponent of the distance, above 0 and at most 7.
        eps: Positive number in the coordinates' unit to the ``power``, added to each power of a distance.

    Returns:
        float32 (N, D), on the device of ``points``. Weights are computed in float64, the sum over the k neighbours in
        float32.

    Raises:
        InputError: An argument has the wrong shape or dtype, holds NaN or infinity, or is out of range.

    Example:
        >>> import torch
        >>> from mmad_bank.ops import interpolate_features
        >>> centers = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
        >>> interpolate_features(torch.tensor([[0.5, 0, 0]]), centers, torch.tensor([[2.0], [4.0]]), k=2)
        tensor([[3.]])
    """
    cloud, groups, rows = as_points(points, "points"), as_points(centers, "centers"), as_features(features, "features")
    check_finite(rows, "features")
    check_same_device(groups, "centers", cloud)
    check_same_device(rows, "features", cloud)
    check_interpolation(len(groups), len(rows), k, power, eps)
    if cloud.device.type == "cpu":
        return _interpolate_cpu(cloud, groups, rows, k, float(power), float(eps))
    cuda = cuda_kernels(cloud.device)
    if cuda is not None:
        return cuda.interpolate_features(cloud, groups, rows, k, float(power), float(eps))
    return _torch.interpolate_features(cloud, groups, rows, k, power, eps, dense=k > _GATHER_UP_TO)


def _interpolate_cpu(points: Tensor, centers: Tensor, features: Tensor, k: int, power: float, eps: float) -> Tensor:
    output = torch.empty(len(points), features.shape[1], dtype=torch.float32)
    threads = thread_count()
    if k <= _GATHER_UP_TO:
        arrays = array_of(points), array_of(centers), array_of(features)
        _core.interpolate_features(*arrays, k, power, eps, threads, array_of(output))
        return output
    step = max(1, _TABLE_BYTES // (4 * len(centers)))
    with exact_float32(points.device):
        for block, result in zip(points.split(step), output.split(step), strict=True):
            weights = _core.interpolation_weights(array_of(block), array_of(centers), k, power, eps, threads)
            torch.mm(torch.from_numpy(weights), features, out=result)
    return output
