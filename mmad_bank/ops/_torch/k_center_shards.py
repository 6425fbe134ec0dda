"""Shards and coordinator of a greedy k-center selection in plain PyTorch, on any device.

The textbook on both sides: the reference of :mod:`mmad_bank.ops.k_center_shards`, whose classes these stand in for.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from mmad_bank.ops.k_center_shards import PICKED, Candidates

_BLOCK_VALUES = 1 << 20  # differences at a time


class KCenterShard:
    """Rows that meet every centre at once, with float64 distances; see its namesake.

    Example:
        >>> shard = KCenterShard(torch.tensor([[0.0], [3.0], [5.0]]), n_centers=2)
        >>> shard.meet(torch.tensor([[0.0]]), own=torch.tensor([0]))
        >>> shard.rise(4.0, at_most=1)
        Candidates(squared=tensor([25.], dtype=torch.float64), rows=tensor([2]), above=2, below=0.0)
    """

    def __init__(
        self,
        features: Tensor,
        *,
        n_centers: int,
        threads: int | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> None:
        self._features = features
        self._squared = torch.full((len(features),), math.inf, dtype=torch.float64, device=features.device)

    def __len__(self) -> int:
        return len(self._features)

    def meet(self, centers: Tensor, own: Tensor | None = None) -> None:
        """Take in the newest centres."""
        for center in centers.to(self._features.device).double():
            for values, rows in zip(*self._blocks(), strict=True):
                torch.minimum(values, (rows.double() - center).square().sum(1), out=values)
        if own is not None:
            self._squared[own[own >= 0].to(self._squared.device)] = PICKED

    def settle(self, rows: Tensor, squared: Tensor) -> None:
        """Take in what the coordinator knows of rows of the pool."""
        self._squared[rows.to(self._squared.device)] = squared.to(self._squared.device)

    def rise(self, bar: float, at_most: int) -> Candidates:
        """Return the farthest rows, of equal ones the lowest."""
        above = (self._squared >= bar).nonzero()[:, 0]
        below = self._squared[self._squared < bar]
        order = self._squared[above].argsort(descending=True, stable=True)[:at_most]
        rows = above[order]
        largest = float(below.max().clamp(min=0.0)) if len(below) else 0.0
        return Candidates(self._squared[rows].cpu(), rows.cpu(), len(above), largest)

    def _blocks(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        step = max(1, _BLOCK_VALUES // max(1, self._features.shape[1]))
        return self._squared.split(step), self._features.split(step)


class KCenterCoordinator:
    """The textbook loop inside a pool, which ends where a row outside it may be farther; see its namesake."""

    def __init__(
        self,
        n_rows: int,
        n_select: int,
        *,
        n_earlier: int = 0,
        start: int = 0,
        radius: float = -1.0,
        pool: int = 0,
        threads: int | None = None,
    ) -> None:
        self._n_rows, self._n_select, self._radius = n_rows, n_select, radius
        self._pool_size = pool or 64
        self._rows = [] if n_earlier else [start]
        self._radii = [] if n_earlier else [math.inf]
        self._offers: list[Candidates] = []
        self._finished = False
        self.bar = math.inf
        self.covering_radius: float | None = 0.0 if self.complete and len(self._rows) == n_rows else None
        self.pool = torch.empty(0, dtype=torch.int64)
        self.values = torch.empty(0, dtype=torch.float64)
        self._outside = (PICKED, n_rows)

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

    def offer(self, candidates: Candidates) -> None:
        """Take a shard's candidates, with rows numbered in all shards."""
        self._offers.append(candidates)

    def join(self) -> bool:
        """Make a pool of the farthest offers; False where too few rows are above the bar."""
        if self.covering_radius is not None:
            return True
        offers, self._offers = self._offers, []
        if sum(one.above for one in offers) < self.wanted:
            largest = max(one.below for one in offers)
            self.bar = largest * 0.9 if math.isinf(self.bar) else min(self.bar * 0.9, largest)
            return False
        squared = torch.cat([one.squared for one in offers])
        rows = torch.cat([one.rows for one in offers])
        by_row = rows.argsort()
        order = by_row[squared[by_row].argsort(descending=True, stable=True)]
        inside = order[: self._pool_size]
        rest = order[self._pool_size : self._pool_size + 1]
        self._outside = (float(squared[rest]), int(rows[rest])) if len(rest) else (PICKED, self._n_rows)
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
            if squared == PICKED or (-squared, row) > (-self._outside[0], self._outside[1]):
                break
            if squared == 0.0 or math.sqrt(squared) <= self._radius:
                self._finish(squared)
                break
            self._rows.append(row)
            self._radii.append(math.sqrt(squared))
            torch.minimum(self.values, (wide - wide[place]).square().sum(1), out=self.values)
            self.values[place] = PICKED
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
