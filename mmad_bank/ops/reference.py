"""The plain PyTorch definition of each op: short, obviously right, slow. The tests hold every kernel against these.

Distances are computed from differences in float64, never from the expansion ``|a|^2 + |b|^2 - 2ab``, so that what a
kernel is compared with has no cancellation of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def k_center_greedy(features: Tensor, n_select: int, *, start: int = 0) -> Tensor:
    """Textbook farthest-first traversal: (N, D) -> int64 (n_select,), ties to the lowest index, no row twice."""
    x = features.double()
    nearest = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    chosen = [start]
    while len(chosen) < n_select:
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square_().sum(1))
        nearest[chosen[-1]] = -1.0
        chosen.append(int((nearest == nearest.max()).int().argmax()))
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)


def knn(queries: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Exact neighbours: (Q, D), (M, D) -> distances float32 (Q, k), indices int64 (Q, k); ties to the lowest index."""
    distances = torch.empty(len(queries), k, dtype=torch.float32, device=queries.device)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    wide = bank.double()
    for row, query in enumerate(queries.double()):
        squared = (wide - query).square_().sum(1)
        order = torch.sort(squared, stable=True)
        distances[row] = order.values[:k].sqrt().float()
        indices[row] = order.indices[:k]
    return distances, indices


def farthest_point_sample(
    points: Tensor,
    n_select: int,
    *,
    start: int = 0,
    lengths: Sequence[int] | None = None,
    min_norm_sq: float | None = None,
) -> Tensor:
    """Farthest point sampling of each cloud: (B, N, 3) -> int64 (B, n_select); ties to the lowest index.

    The first ``lengths[b]`` rows of cloud b count, and among them ``start`` and those with ‖p‖² > ``min_norm_sq``.
    """
    picks = []
    for cloud, length in zip(points, [points.shape[1]] * len(points) if lengths is None else lengths, strict=True):
        allowed = torch.ones(length, dtype=torch.bool)
        if min_norm_sq is not None:
            allowed = cloud[:length].double().square().sum(1) > min_norm_sq
        allowed[start] = True
        rows = allowed.nonzero()[:, 0]
        picks.append(rows[k_center_greedy(cloud[rows], n_select, start=int(allowed[:start].sum()))])
    return torch.stack(picks)


def knn_group(points: Tensor, centers: Tensor, k: int) -> Tensor:
    """Rows of the k points nearest to each centre: (N, 3), (G, 3) -> int64 (G, k); ties to the lowest index."""
    return knn(centers, points, k)[1]


def interpolate_features(
    points: Tensor, centers: Tensor, features: Tensor, *, k: int = 3, power: float = 2, eps: float = 1e-8
) -> Tensor:
    """Inverse-distance weighting over the k nearest centres: (N, 3), (G, 3), (G, D) -> (N, D).

    The weight of a centre at distance d is 1 / (d**power + eps), normalised over the k centres (M3DM eq. 1 with k = G
    and power 1; its published code with k = 3 and power 2).
    """
    squared = (points.double()[:, None] - centers.double()[None]).square().sum(-1)
    order = torch.sort(squared, dim=1, stable=True)
    weights = 1.0 / (order.values[:, :k] ** (power / 2) + eps)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("nk,nkd->nd", weights, features.double()[order.indices[:, :k]]).to(features.dtype)
