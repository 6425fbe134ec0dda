"""Shards and coordinator of a selection in plain PyTorch: for devices without a native kernel, and as the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SUMS = 32  # as csrc/include/mmad/operand.hpp defines the order of the sum
_ROWS_TOGETHER = 1 << 14
_PICKED = -1.0  # value of a row that was picked

Offer = tuple[Tensor, Tensor, int, float]
"""Fields of :class:`mmad_bank.ops.k_center_shards.Candidates`."""


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
        self._values[own[own >= 0].to(self._rows.device)] = _PICKED

    def settle(self, squared: Tensor, rows: Tensor) -> None:
        self._values[rows.to(self._rows.device)] = squared.to(self._rows.device)

    def rise(self, bar: float, at_most: int) -> tuple[Tensor, Tensor, int, float]:
        inside = self._values >= bar
        rows = inside.nonzero()[:, 0]
        squared, order = torch.sort(self._values[rows], descending=True, stable=True)
        under = self._values[~inside]
        below = float(under.max().clamp(min=0.0)) if len(under) else 0.0
        return squared[:at_most].cpu(), rows[order[:at_most]].cpu(), len(rows), below


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


class TorchCoordinator:
    """The textbook loop inside a pool, which ends where a row outside it may be farther.

    The reference of :class:`mmad_bank.ops.k_center_shards.KCenterCoordinator`, with the same requests.
    """

    def __init__(
        self,
        n_rows: int,
        n_select: int,
        *,
        n_earlier: int = 0,
        start: int = 0,
        radius: float = -1.0,
        pool: int = 0,
    ) -> None:
        self._n_rows, self._n_select, self._radius = n_rows, n_select, radius
        self._pool_size = pool or 64
        self._rows = [] if n_earlier else [start]
        self._radii = [] if n_earlier else [math.inf]
        self._offers: list[Offer] = []
        self._finished = False
        self.bar = math.inf
        self.covering_radius: float | None = 0.0 if self.complete and len(self._rows) == n_rows else None
        self.pool = torch.empty(0, dtype=torch.int64)
        self.values = torch.empty(0, dtype=torch.float64)
        self._outside = (_PICKED, n_rows)

    @property
    def wanted(self) -> int:
        """Number of candidates of a shard that are of use: one more than the pool takes."""
        return max(1, min(self._n_rows - len(self._rows), self._pool_size + 1))

    @property
    def complete(self) -> bool:
        """Whether no more picks will be made."""
        return self._finished or len(self._rows) >= self._n_select

    @property
    def rows(self) -> Tensor:
        """All picks so far, in order."""
        return self.rows_from(0)

    def rows_from(self, first: int) -> Tensor:
        """Return the picks from number ``first`` on."""
        return torch.tensor(self._rows[first:], dtype=torch.int64)

    @property
    def radii(self) -> Tensor:
        """Distance of each pick to its nearest centre before it."""
        return torch.tensor(self._radii, dtype=torch.float64)

    def offer(self, candidates: Offer) -> None:
        """Take a shard's candidates, with rows numbered in all shards."""
        self._offers.append(candidates)

    def join(self) -> bool:
        """Make a pool of the farthest offers; False where too few rows are above the bar."""
        if self.covering_radius is not None:
            return True
        offers, self._offers = self._offers, []
        if sum(one[2] for one in offers) < self.wanted:
            largest = max(one[3] for one in offers)
            self.bar = largest * 0.9 if math.isinf(self.bar) else min(self.bar * 0.9, largest)
            return False
        squared = torch.cat([one[0] for one in offers])
        rows = torch.cat([one[1] for one in offers])
        by_row = rows.argsort()
        order = by_row[squared[by_row].argsort(descending=True, stable=True)]
        inside = order[: self._pool_size]
        rest = order[self._pool_size : self._pool_size + 1]
        self._outside = (float(squared[rest]), int(rows[rest])) if len(rest) else (_PICKED, self._n_rows)
        inside = inside[rows[inside].argsort()]
        self.pool, self.values = rows[inside], squared[inside].clone()
        if self.complete:
            self.covering_radius = math.sqrt(float(self.values.max()))
        return True

    def pick(self, features: Tensor) -> int:
        """Make a block of picks in the pool, and return their number."""
        before, wide = len(self._rows), features.double()
        while len(self._rows) < self._n_select:
            squared = float(self.values.max())
            place = int((self.values == squared).nonzero()[0, 0])
            row = int(self.pool[place])
            if squared == _PICKED or (-squared, row) > (-self._outside[0], self._outside[1]):
                break
            if squared == 0.0 or math.sqrt(squared) <= self._radius:
                self._finish(squared)
                break
            self._rows.append(row)
            self._radii.append(math.sqrt(squared))
            torch.minimum(self.values, (wide - wide[place]).square().sum(1), out=self.values)
            self.values[place] = _PICKED
        if self.complete and (len(self._rows) == self._n_rows or self._radii[-1:] == [0.0]):
            self.covering_radius = 0.0
        if self._outside[0] >= 0.0:
            self.bar = min(self.bar, self._outside[0])
        return len(self._rows) - before

    def _finish(self, squared: float) -> None:
        """End: the farthest row is covered; without a radius the lowest copies of centres fill the selection up."""
        self._finished = True
        if squared == 0.0 and self._radius < 0.0:
            known = set(self._rows)
            copies = (row for row in range(self._n_rows) if row not in known)
            added = [row for row, _ in zip(copies, range(self._n_select - len(known)), strict=False)]
            self._rows += added
            self._radii += [0.0] * len(added)
