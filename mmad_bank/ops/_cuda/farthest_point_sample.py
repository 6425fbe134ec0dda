"""Farthest point sampling on the GPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmad_bank.ops._cuda import device as gpu
from mmad_bank.ops._cuda.checks import check_points, check_sampling


def farthest_point_sample(
    rows: Tensor, first_rows: np.ndarray, sizes: np.ndarray, n_select: int, start: int, floor: float
) -> Tensor:
    """Sample clouds packed as (T, 3) rows, cloud b from ``first_rows[b]`` on: int64 (B, n_select).

    Points with NaN or infinity are left out, like those at or below the floor; ``start`` is picked regardless. A cloud
    with too few others repeats its last pick.
    """
    check_points(rows, "points", rows)
    check_sampling(first_rows, sizes, len(rows), n_select, start)
    layout = torch.from_numpy(np.stack([first_rows, sizes]).astype(np.int64)).to(rows.device)
    return _sample(rows, layout, int(sizes.max()), n_select, start, floor)


def sample_batch(points: Tensor, n_select: int, start: int) -> Tensor:
    """Sample clouds of one size, (B, N, 3) -> int64 (B, n_select); can be captured in a CUDA graph.

    Points with NaN or infinity are treated as :func:`farthest_point_sample` treats them.
    """
    check_points(points, "points", points, ndim=3)
    n_clouds, size, _ = points.shape
    check_sampling(np.array([0]), np.array([size]), size, n_select, start)
    first_rows = torch.arange(n_clouds, device=points.device) * size
    layout = torch.stack([first_rows, torch.full_like(first_rows, size)])
    return _sample(points.reshape(-1, 3), layout, size, n_select, start, -1.0)


def _sample(rows: Tensor, layout: Tensor, largest: int, n_select: int, start: int, floor: float) -> Tensor:
    """``layout`` holds the first rows and the sizes of the clouds, int64 (2, B)."""
    rows = rows.contiguous()
    n_clouds = layout.shape[1]
    picks = torch.empty(n_clouds, n_select, dtype=torch.int64, device=rows.device)
    with gpu.current(rows.device):
        device, stream = gpu.stream_of(rows.device)
        workspace = gpu.workspace(gpu.native.farthest_point_workspace(len(rows)), rows.device)
        gpu.native.farthest_point_sample(
            device, stream, rows.data_ptr(), len(rows), layout[0].data_ptr(), layout[1].data_ptr(), n_clouds, largest,
            n_select, start, floor, workspace.data_ptr(), picks.data_ptr(),
        )  # fmt: skip
    return picks
