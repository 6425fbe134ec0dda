"""Farthest point sampling of point clouds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_finite, check_index
from mmad_bank.errors import InputError
from mmad_bank.ops._dispatch import cuda_kernels, thread_count
from mmad_bank.ops._point_checks import check_columns, check_same_device
from mmad_bank.ops._torch import farthest_point_sample as _torch
from mmad_bank.ops._torch.distances import squared_distances


def farthest_point_sample(
    points: ArrayLike | Sequence[ArrayLike],
    n_select: int,
    *,
    start: int = 0,
    lengths: ArrayLike | Sequence[int] | None = None,
    min_norm_sq: float | None = None,
) -> Tensor:
    """Sample each cloud by farthest-first traversal: every pick is the point farthest from the picks before it.

    The result is that of the textbook loop (Eldar et al. 1997; PointNet++, Qi et al. 2017, sec. 3.2) with squared
    distances in float64: equal distances go to the lowest row, and no row is picked twice, duplicates or not.

    Args:
        points: (B, N, 3) coordinates, or a sequence of (N_i, 3) clouds of different sizes; finite, in any unit. float64
            is rounded to float32.
        n_select: Number of picks per cloud, at most the points of the smallest cloud.
        start: Row of the first pick in every cloud.
        lengths: (B,) number of leading rows of each cloud that count, for a batch padded to N rows; what the padding
            holds does not matter.
        min_norm_sq: Points with ‖p‖² at or below it are left out (``start`` is picked regardless). The kernel of
            the published PointNet++ code, which M3DM and CFM use, leaves out ‖p‖² ≤ 1e-3, in the cloud's own units, to
            skip padding at the origin. Default: none is left out.

    Returns:
        int64 (B, n_select): rows of each cloud in the order of selection, on the device of ``points``.

    Raises:
        InputError: An argument has the wrong shape or dtype, holds NaN or infinity, or a cloud has too few points.

    Example:
        >>> import torch
        >>> from mmad_bank.ops import farthest_point_sample
        >>> line = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]]])
        >>> farthest_point_sample(line, 3)
        tensor([[0, 3, 2]])
    """
    rows, first_rows, sizes = _as_clouds(points, lengths)
    smallest = int(sizes.min())
    check_index(n_select, "n_select", 1, smallest, "the number of points in the smallest cloud")
    check_index(start, "start", 0, smallest - 1, "the rows of the smallest cloud")
    _check_clouds(rows, first_rows, sizes)
    floor = -1.0
    if min_norm_sq is not None:
        floor = _check_floor(min_norm_sq)
        _check_eligible(rows, first_rows, sizes, n_select, start, floor)
    if rows.device.type == "cpu":
        array = array_of(rows)
        return torch.from_numpy(
            _core.farthest_point_sample(array, first_rows, sizes, n_select, start, floor, thread_count())
        )
    cuda = cuda_kernels(rows.device)
    if cuda is not None:
        return cuda.farthest_point_sample(rows, first_rows, sizes, n_select, start, floor)
    padded, eligible = _padded(rows, first_rows, sizes, floor)
    return _torch.farthest_point_sample(padded, eligible, n_select, start)


def _as_clouds(
    points: ArrayLike | Sequence[ArrayLike], lengths: ArrayLike | Sequence[int] | None
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return all points as (T, 3) rows and, for each cloud, its first row and its number of rows."""
    if isinstance(points, (list, tuple)):
        if lengths is not None:
            raise InputError("lengths: expected None with a sequence of clouds, whose sizes are known")
        return _from_sequence(points)
    batch = as_float_tensor(points, "points", ndim=3)
    check_columns(batch, "points")
    n_clouds, size, _ = batch.shape
    sizes = np.full(n_clouds, size, dtype=np.int64)
    if lengths is not None:
        sizes = _check_lengths(lengths, n_clouds, size)
    return batch.flatten(0, 1), np.arange(n_clouds, dtype=np.int64) * size, sizes


def _from_sequence(points: Sequence[ArrayLike]) -> tuple[Tensor, np.ndarray, np.ndarray]:
    if not points:
        raise InputError("points: expected at least one cloud, found an empty sequence")
    clouds = [as_float_tensor(cloud, f"points[{b}]") for b, cloud in enumerate(points)]
    for b, cloud in enumerate(clouds):
        check_columns(cloud, f"points[{b}]")
        check_same_device(cloud, f"points[{b}]", clouds[0])
    sizes = np.array([len(cloud) for cloud in clouds], dtype=np.int64)
    return torch.cat(clouds), np.cumsum(sizes) - sizes, sizes


def _check_lengths(lengths: ArrayLike | Sequence[int], n_clouds: int, size: int) -> np.ndarray:
    given = lengths.cpu().numpy() if isinstance(lengths, Tensor) else np.asarray(lengths)
    if given.dtype.kind not in "iu" or given.shape != (n_clouds,):
        raise InputError(f"lengths: expected {n_clouds} integers, found {given.dtype} of shape {given.shape}")
    for b, length in enumerate(given):
        check_index(length, f"lengths[{b}]", 1, size, "the rows of a cloud")
    return np.ascontiguousarray(given, dtype=np.int64)


def _clouds(rows: Tensor, first_rows: np.ndarray, sizes: np.ndarray) -> list[Tensor]:
    return [rows[first : first + size] for first, size in zip(first_rows, sizes, strict=True)]


def _check_clouds(rows: Tensor, first_rows: np.ndarray, sizes: np.ndarray) -> None:
    if bool(torch.isfinite(rows).all()):
        return
    for b, cloud in enumerate(_clouds(rows, first_rows, sizes)):
        check_finite(cloud, f"points[{b}]")


def _check_floor(min_norm_sq: float) -> float:
    if isinstance(min_norm_sq, bool) or not isinstance(min_norm_sq, (int, float, np.number)):
        raise InputError(f"min_norm_sq: expected a number or None, found {min_norm_sq!r}")
    if not (math.isfinite(min_norm_sq) and min_norm_sq >= 0):
        raise InputError(f"min_norm_sq: expected a finite number of at least 0, found {min_norm_sq}")
    return float(min_norm_sq)


def _check_eligible(
    rows: Tensor, first_rows: np.ndarray, sizes: np.ndarray, n_select: int, start: int, floor: float
) -> None:
    for b, cloud in enumerate(_clouds(rows, first_rows, sizes)):
        allowed = _above(cloud, floor)
        count = int(allowed.sum()) + int(not allowed[start])
        if count < n_select:
            raise InputError(
                f"min_norm_sq: expected at least {n_select} points to be left (n_select), found {count} in points[{b}]"
            )


def _above(points: Tensor, floor: float) -> Tensor:
    return squared_distances(points, points.new_zeros(3)) > floor


def _padded(rows: Tensor, first_rows: np.ndarray, sizes: np.ndarray, floor: float) -> tuple[Tensor, Tensor]:
    """Lay the clouds out as (B, N, 3) and say which rows may be picked."""
    points = torch.nn.utils.rnn.pad_sequence(_clouds(rows, first_rows, sizes), batch_first=True)
    counted = torch.arange(points.shape[1], device=rows.device) < torch.from_numpy(sizes).to(rows.device)[:, None]
    return points, counted & _above(points, floor)
