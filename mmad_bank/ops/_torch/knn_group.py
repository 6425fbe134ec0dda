"""Grouping of points around centres in plain PyTorch: any device that PyTorch runs on."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank.ops._torch.distances import nearest


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Nearest points of each centre: (N, 3), (G, 3) -> int64 (G, k)."""
    return torch.cat([index for _, _, index in nearest(centers, points, k)])
