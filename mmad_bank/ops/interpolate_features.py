"""Inverse-distance interpolation of group features to points."""

from __future__ import annotations

from torch import Tensor

from mmad_bank._checks import ArrayLike, as_float_tensor
from mmad_bank.ops import reference


def interpolate_features(
    points: ArrayLike, centers: ArrayLike, features: ArrayLike, *, k: int = 3, power: int = 2, eps: float = 1e-8
) -> Tensor:
    """Spread features of G centres to N points: (N, 3), (G, 3), (G, D) -> (N, D)."""
    return reference.interpolate_features(
        as_float_tensor(points, "points"), as_float_tensor(centers, "centers"), as_float_tensor(features, "features"),
        k=k, power=power, eps=eps,
    )
