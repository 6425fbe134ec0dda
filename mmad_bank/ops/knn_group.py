"""Grouping of a point cloud around centres: the k nearest points of each."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, check_index
from mmad_bank.ops._dispatch import cuda_kernels, thread_count
from mmad_bank.ops._point_checks import as_points, check_batch, check_same_device
from mmad_bank.ops._torch import knn_group as _torch


def knn_group(points: ArrayLike, centers: ArrayLike, k: int) -> Tensor:
    """Find the k nearest points of each centre, exactly: the grouping step of Point-MAE (Pang et al. 2022, sec. 3.1).

    Args:
        points: (N, 3) coordinates, or (B, N, 3) for a batch; finite, in any unit. float64 is rounded to float32.
        centers: (G, 3) or (B, G, 3), on the same device.
        k: Number of points per group, 1 to N.

    Returns:
        int64 (G, k) or (B, G, k): rows of ``points``, nearest first, equal distances by the lowest row. Distances are
        compared in float64.

    Raises:
        InputError: An argument has the wrong shape or dtype, holds NaN or infinity, or ``k`` is out of range.

    Example:
        >>> import torch
        >>> from mmad_bank.ops import knn_group
        >>> points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5, 0, 0]])
        >>> knn_group(points, torch.tensor([[4.0, 0, 0]]), 2)
        tensor([[2, 1]])
    """
    cloud = as_points(points, "points", ndim=(2, 3))
    groups = as_points(centers, "centers", ndim=(2, 3))
    check_batch(cloud, groups)
    check_same_device(groups, "centers", cloud)
    check_index(k, "k", 1, cloud.shape[-2], "the number of points")
    cuda = None if cloud.device.type == "cpu" else cuda_kernels(cloud.device)
    if cuda is not None:
        return cuda.knn_group(cloud, groups, k)
    if cloud.ndim == 2:
        return _knn_group(cloud, groups, k)
    return torch.stack([_knn_group(one, around, k) for one, around in zip(cloud, groups, strict=True)])


def _knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    if points.device.type == "cpu":
        return torch.from_numpy(_core.knn_group(array_of(points), array_of(centers), k, thread_count()))
    return _torch.knn_group(points, centers, k)
