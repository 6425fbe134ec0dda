"""Nets of a stream: centers at several scales, one of which proves how well the stream's bank covers.

A net is the doubling algorithm at one scale (Charikar, Chekuri, Feder and Motwani, "Incremental clustering and dynamic
information retrieval", STOC 1997 and SIAM J. Comput. 33, 2004). With the growth a, its level L and k centers at most:

1. centers are more than 2 L apart;
2. every row seen lies within r(L) = 2 a / (a - 1) L of a center;
3. the best k centers, wherever they lie, leave a row farther than L / a.

A row beyond r(L) becomes a center. If that makes k + 1, two of them share one of the best k centers, and by 1 these
leave a row farther than L. So the level may rise to a L: centers are dropped that lie within 2 a L of one that stays,
and rows are within r(L) + 2 a L = r(a L) of one. 1 to 3 hold again. One net with a = 2 has
r(L) = 4 L, and by 3 covers within 8 times the optimum.

m nets whose levels start a^(1/m) apart (McCutchen and Khuller, "Streaming algorithms for k-center clustering with
outliers and with anonymity", APPROX 2008; Guha, "Tight results for clustering and summarizing data streams", ICDT
2009) do better. Their levels are different powers of a^(1/m). One of them has the smallest such power above the optimum
on its way and never rises past it. So the lowest net covers within 2 a / (a - 1) a^(1/m) times the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mmad_bank import ops

ROUNDING = 1e-6
"""Relative error of float32 distances, at most."""
_MOST_NETS = 64


@dataclass(frozen=True)
class Net:
    """Centers at one scale.

    Attributes:
        vectors: (K, D) float32 centers.
        rows: int64 (K,) their rows in the stream.
        level: L, the scale.
        growth: a, the factor by which the level rises.
    """

    vectors: Tensor
    rows: Tensor
    level: float
    growth: float

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def radius(self) -> float:
        """Distance within which every row seen has a center."""
        return 2 * self.growth / (self.growth - 1) * self.level

    @cached_property
    def index(self) -> ops.SearchIndex:
        """The exact search of the centers."""
        return ops.SearchIndex(self.vectors, precision="half")

    def taken(self, block: Tensor, numbers: Tensor, most: int) -> Net:
        """Return the net after a block (B, D) of rows with their numbers (B,); it has at most ``most`` centers."""
        net = self
        while True:
            far = (net.index.search(block, 1)[0][:, 0] > net.radius).nonzero()[:, 0]
            if not len(far):
                return net
            room = min(most + 1 - len(net), len(far))
            picks = far[ops.extend_coreset(block[far], net.vectors, radius=net.radius, n_select=room).indices]
            if len(net) + len(picks) <= most:
                vectors = torch.cat([net.vectors, block[picks]])
                return replace(net, vectors=vectors, rows=torch.cat([net.rows, numbers[picks.cpu()]]))
            net = net.risen()

    def risen(self) -> Net:
        """Return the net at the next level."""
        level = self.level * self.growth
        kept = thinned(self.vectors, 2 * level)
        return replace(self, vectors=self.vectors[kept], rows=self.rows[kept.cpu()], level=level)


def thinned(vectors: Tensor, distance: float) -> Tensor:
    """Return the numbers of vectors more than a distance apart, such that all others are within it of one of them."""
    first = torch.zeros(1, dtype=torch.int64, device=vectors.device)
    if len(vectors) == 1:
        return first
    return torch.cat([first, 1 + ops.extend_coreset(vectors[1:], vectors[:1], radius=distance).indices])


def first_nets(vectors: Tensor, rows: Tensor, floor: float, growth: float, number: int, most: int) -> tuple[Net, ...]:
    """Return nets over vectors that are all that was seen, where the best ``most`` centers leave ``floor`` at least."""
    nets = []
    for step in range(1, number + 1):
        net = Net(vectors, rows, floor * growth ** (step / number - 1), growth).risen()
        while len(net) > most:
            net = net.risen()
        nets.append(net)
    return tuple(nets)


def lowest(nets: Sequence[Net]) -> Net:
    """Return the net that proves the smallest radius."""
    return min(nets, key=lambda net: net.level)


def best_possible(floor: float, nets: Sequence[Net]) -> float:
    """Return what the best centers leave at least, by the nets and by another such bound."""
    return max([floor, *(net.level / net.growth for net in nets)]) * (1 - ROUNDING)


def plan(factor: float) -> tuple[float, int]:
    """Return the growth and the number of nets, as few as possible, that prove a factor above 2.

    Example:
        >>> plan(8.0), plan(4.0)[1], plan(3.0)[1]
        ((2.0, 1), 4, 8)
    """
    for number in range(1, _MOST_NETS + 1):
        # 2 a^(1 + 1/m) / (a - 1) is smallest at a = m + 1.
        growth = number + 1.0
        if proved(growth, number) <= factor * (1 + 1e-12):
            return growth, number
    raise ValueError(factor)


def proved(growth: float, number: int) -> float:
    """Return the factor that nets prove.

    Example:
        >>> proved(2.0, 1)
        8.0
    """
    return 2 * math.pow(growth, 1 + 1 / number) / (growth - 1)


LEAST_FACTOR = proved(_MOST_NETS + 1.0, _MOST_NETS)
