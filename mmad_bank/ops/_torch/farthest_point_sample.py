"""Farthest point sampling in plain PyTorch: any device that PyTorch runs on."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank.ops._torch.distances import squared_distances


def farthest_point_sample(points: Tensor, eligible: Tensor, n_select: int, start: int) -> Tensor:
    """Sample all clouds at a time: points (B, N, 3), eligible bool (B, N) -> int64 (B, n_select)."""
    nearest = torch.where(eligible, torch.inf, -1.0).double()
    chosen = torch.full((len(points), n_select), start, dtype=torch.int64, device=points.device)
    for i in range(1, n_select):
        last = chosen[:, i - 1 : i]
        nearest.scatter_(1, last, -1.0)
        centre = points.gather(1, last[..., None].expand(-1, -1, 3))
        nearest = torch.minimum(nearest, squared_distances(points, centre))
        chosen[:, i] = nearest.argmax(1)
    return chosen
