"""Exact greedy k-centre selection (farthest-first traversal)."""

from __future__ import annotations

from torch import Tensor

from mmad_bank._checks import ArrayLike, as_features, check_finite, check_index
from mmad_bank.ops import reference


def k_center_greedy(features: ArrayLike, n_select: int, *, start: int = 0, progress: bool = False) -> Tensor:
    """Choose rows one by one, each the farthest from those chosen before: (N, D) -> int64 (n_select,), in order."""
    rows = as_features(features)
    check_index(n_select, "n_select", 1, len(rows), "the number of rows")
    check_index(start, "start", 0, len(rows) - 1, "the row numbers")
    check_finite(rows, "features")
    return reference.k_center_greedy(rows, n_select, start=start)
