"""Interpolation of features in plain PyTorch: any device that PyTorch runs on."""

from __future__ import annotations

import torch
from torch import Tensor

from mmad_bank._internal.precision import exact_float32
from mmad_bank.ops._torch.distances import nearest


def interpolate_features(
    points: Tensor, centers: Tensor, features: Tensor, k: int, power: float, eps: float, *, dense: bool
) -> Tensor:
    """Spread features to points; ``dense`` turns the gather into a matrix product with the full table of weights."""
    output = torch.empty(len(points), features.shape[1], dtype=torch.float32, device=features.device)
    for rows, squared, index in nearest(points, centers, k):
        weights = 1.0 / (squared ** (power / 2) + eps)
        weights = (weights / weights.sum(1, keepdim=True)).float()
        if dense:
            table = torch.zeros(len(index), len(centers), dtype=torch.float32, device=features.device)
            with exact_float32(features.device):
                torch.mm(table.scatter_(1, index, weights), features, out=output[rows])
            continue
        part = output[rows].copy_(weights[:, :1] * features[index[:, 0]])
        for j in range(1, k):
            part += weights[:, j : j + 1] * features[index[:, j]]
    return output
