"""Clouds cut into overlapping patches (MDSS, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_finite, check_index
from mmad_bank.errors import InputError
from mmad_bank.ops import farthest_point_sample, knn_group

PATCH_SIZE = 500
_TRIED, _MOST = 4, 16  # centres looked at for a cover, as multiples of N / K: flat clouds take 2.5 to 4


@dataclass(frozen=True)
class CloudPatches:
    """Overlapping patches of one cloud.

    Attributes:
        points: (P, K, 3) float32, each patch centred on its mean and divided by its extent (the longest side of its
            bounding box).
        rows: (P, K) int64, numbers of these points in the cloud.
        count: Number of distinct points among the K: K, or all points of a smaller cloud, which are repeated in order.
    """

    points: Tensor
    rows: Tensor
    count: int


def cut_patches(points: ArrayLike, *, size: int = PATCH_SIZE, coverage: float | None = None) -> CloudPatches:
    """Cut a cloud into patches of its nearest points around farthest-point samples (MDSS, section 4.2).

    Every point is in one patch at least, as the paper asks for. With a number of patches given by ``coverage``, some
    points may be left out: around the first of them in order one more patch is cut, until none is left.

    Args:
        points: (N, 3), in any unit.
        size: K, number of points per patch. A cloud of fewer points is one patch in which they repeat.
        coverage: Number of patches that a point lies in on average; round(coverage · N / K) patches are sampled.
            Shape-guided's code takes 5 in training and 10 in inference. None samples until every point is in a patch,
            and no longer: the paper gives no other number.

    Returns:
        The patches, on the points' device.

    Raises:
        InputError: An argument has the wrong shape, holds NaN or infinity, or is out of range.

    Example:
        >>> patches = cut_patches(torch.rand(1200, 3), size=100, coverage=2.0)
        >>> patches.points.shape[1:], patches.count, len(patches.points) >= 24
        (torch.Size([100, 3]), 100, True)
    """
    cloud = as_float_tensor(points, "points")
    if cloud.shape[1] != 3 or len(cloud) == 0:
        raise InputError(f"points: expected (N, 3) with at least one point, found shape {tuple(cloud.shape)}")
    check_finite(cloud, "points")
    check_index(size, "size", 1, 2**20, "points per patch")
    if coverage is not None and not 0 < coverage < math.inf:
        raise InputError(f"coverage: expected a positive finite number or None, found {coverage!r}")
    rows = _cover(cloud, size) if coverage is None else _sampled(cloud, size, coverage * len(cloud) / size)
    rows, count = _complete(cloud, rows), min(size, len(cloud))
    repeated = rows[:, torch.arange(size, device=rows.device) % count]
    patches = cloud[repeated].double()
    low, high = patches.amin(1, keepdim=True), patches.amax(1, keepdim=True)
    extent = (high - low).amax(2, keepdim=True)
    centred = patches - cloud[rows].double().mean(1, keepdim=True)
    scaled = centred / torch.where(extent > 0, extent, 1.0)
    return CloudPatches(scaled.float(), repeated, count)


def _sampled(cloud: Tensor, size: int, number: float) -> Tensor:
    """Return the rows (P, K) of the points of about so many patches; a cloud of fewer than K points is one patch."""
    n_patches = 1 if len(cloud) <= size else min(len(cloud), max(1, round(number)))
    centres = farthest_point_sample(cloud[None], n_patches)[0]
    return knn_group(cloud, cloud[centres], min(size, len(cloud)))


def _cover(cloud: Tensor, size: int) -> Tensor:
    """Return the same of the fewest farthest-point samples whose patches hold every point.

    The first n of many samples are the n samples themselves. So many are drawn at once, and as many are kept as the
    point needs that comes last into a patch. Where copies of a point are more than a patch holds, none are enough.
    """
    number, most = _TRIED * len(cloud) / size, _MOST * len(cloud) / size
    while True:
        rows = _sampled(cloud, size, number)
        patch = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
        first = torch.full((len(cloud),), len(rows), device=rows.device)
        needed = int(first.scatter_reduce_(0, rows.flatten(), patch.flatten(), "amin").max()) + 1
        if needed <= len(rows) or number >= most:
            return rows[:needed]
        number *= 2


def _complete(cloud: Tensor, rows: Tensor) -> Tensor:
    """Append a patch around the first point that no patch holds, until all are in one."""
    left = torch.ones(len(cloud), dtype=torch.bool, device=cloud.device)
    left[rows] = False
    while bool(left.any()):
        # With many duplicates a point need not be among its own nearest: it takes the last place then.
        centre = int(left.nonzero()[0, 0])
        more = knn_group(cloud, cloud[centre][None], rows.shape[1])
        more[0, -1] = torch.where((more == centre).any(), more[0, -1], centre)
        rows = torch.cat([rows, more])
        left[more] = False
    return rows


class JoinedPatches:
    """Patches of several tables as one, of which rows are read: mapped files stay in their files.

    Args:
        tables: Patches (P, K, 3) float32 each, of one K.

    Example:
        >>> JoinedPatches([np.zeros((2, 5, 3)), np.ones((1, 5, 3))])[[2, 0]][:, 0, 0].tolist()
        [1.0, 0.0]
    """

    ndim = 3

    def __init__(self, tables: Sequence[np.ndarray]) -> None:
        self.tables = list(tables)
        self._ends = np.cumsum([len(table) for table in tables])
        self.shape = (int(self._ends[-1]), *tables[0].shape[1:])

    def __getitem__(self, rows: Sequence[int]) -> np.ndarray:
        return np.stack([self._row(row) for row in rows])

    def _row(self, row: int) -> np.ndarray:
        table = int(np.searchsorted(self._ends, row, side="right"))
        return self.tables[table][row - self._ends[table] + len(self.tables[table])]
