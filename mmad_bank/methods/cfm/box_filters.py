"""The smoothing of CFM's published code: box filters in place of the Gaussian that the paper names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mmad_bank.methods.prediction import Gaussian

BOXES = ((5, 5), (7, 3))
"""Width of each filter in pixels, and how often it is applied."""


@dataclass(frozen=True)
class BoxFilters:
    """Scores are enlarged bilinearly and averaged five times over 5×5 and three times over 7×7 pixels.

    Outside the image the averages take zeros, as the published code does.

    Example:
        >>> smooth = BoxFilters()(torch.ones(4, 4), (64, 64))
        >>> round(float(smooth[32, 32]), 4), bool(smooth[0, 0] < 0.5)
        (1.0, True)
    """

    def __call__(self, scores: Tensor, size: tuple[int, int], /) -> Tensor:
        """Bring scores (h, w) to a map (H, W)."""
        enlarged = Gaussian(0.0)(scores, size)
        rows, columns = (_box_filters(side).to(enlarged) for side in size)
        return rows @ enlarged @ columns.T


@lru_cache(maxsize=4)
def _box_filters(n: int) -> Tensor:
    """Return the (n, n) matrix of all averages along a side."""
    matrix = torch.eye(n, dtype=torch.float64)
    offsets = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    for width, times in BOXES:
        for _ in range(times):
            matrix = (offsets <= width // 2).double() / width @ matrix
    return matrix
