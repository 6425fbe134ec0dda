"""A shard of a selection in plain PyTorch, for devices without a native kernel."""

from __future__ import annotations

import torch
from torch import Tensor

_SUMS = 32  # as csrc/include/mmad/operand.hpp defines the order of the sum
_ROWS_TOGETHER = 1 << 14


class TorchShard:
    """The requests of a shard: every row meets every centre at once, in float64.

    The values are those of the native kernels to the last bit, so that equal rows tie wherever they lie.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._values = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)

    def meet(self, centers: Tensor, own: Tensor) -> None:
        wide = centers.to(self._rows.device).double()
        for first in range(0, len(self._rows), _ROWS_TOGETHER):
            part = slice(first, first + _ROWS_TOGETHER)
            rows, values = self._rows[part].double(), self._values[part]
            for center in wide:
                torch.minimum(values, squared_distances(rows, center), out=values)
        self._values[own[own >= 0].to(self._rows.device)] = -1.0

    def settle(self, squared: Tensor, rows: Tensor) -> None:
        self._values[rows.to(self._rows.device)] = squared.to(self._rows.device)

    def rise(self, bar: float, at_most: int) -> tuple[Tensor, Tensor, int, float]:
        inside = self._values >= bar
        rows = inside.nonzero()[:, 0]
        squared, order = torch.sort(self._values[rows], descending=True, stable=True)
        below = torch.where(inside, 0.0, self._values).clamp(min=0.0).amax()
        return squared[:at_most].cpu(), rows[order[:at_most]].cpu(), len(rows), float(below)


def squared_distances(rows: Tensor, center: Tensor) -> Tensor:
    """Squared distances of float64 rows (N, D) to a centre (D,), summed in the order of the native core."""
    squares = (rows - center).square_()
    sums = torch.zeros(len(rows), _SUMS, dtype=torch.float64, device=rows.device)
    for columns in squares.split(_SUMS, dim=1):
        sums[:, : columns.shape[1]] += columns
    while sums.shape[1] > 1:
        low, high = sums.chunk(2, dim=1)
        sums = low + high
    return sums[:, 0]
