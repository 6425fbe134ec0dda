"""What a stream leaves in memory: the vectors of its bank, and the nets that prove how well they cover.

The bank holds the centers of the lowest net, so it covers at least as well as that one does. The rest of its room is
filled as the offline greedy selection fills a bank: with the rows that are farthest from it.

A row within the *spacing* of the bank is covered. The others of a block come into the bank, farthest first. When it is
full, the greedy selection runs over bank and new rows together, which drops the vectors that
are worth least and raises the spacing to the distance of the first one that it left out. Beside the net's bound each
vector keeps the *reach* of the rows that it stands for, which is often smaller: a dropped vector hands its rows
on with its distance added.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank.bank.stream_nets import ROUNDING, Net, best_possible, first_nets, lowest, plan
from mmad_bank.bank.stream_state import StreamState

_SLACK = 16  # a full bank is cut back by this part of its size, so that it is not selected anew for every row
_HOPE = 4  # rows that one vector covers on the average, at most


class Cover:
    """A bank with a fixed budget, after some rows.

    :meth:`take` puts new tensors in the place of the old ones: a shallow copy is the cover as it was.

    Args:
        size: Largest number of vectors.
        factor: Proved factor, see :class:`~mmad_bank.bank.StreamingBank`.

    Attributes:
        vectors: (M, D) float32.
        rows: int64 (M,) their rows in the stream, on the CPU.
        reach: float64 (M,) distance of the farthest row that each stands for, at most, on the CPU.
        spacing: Distance within which a row counts as covered.
        floor: Radius that the best ``size`` centers leave at least.
        nets: Nets; none before more than ``size`` different rows have been seen.
    """

    def __init__(self, size: int, factor: float) -> None:
        self.size, self.factor = size, factor
        self.vectors = torch.empty(0, 0)
        self.rows = torch.empty(0, dtype=torch.int64, device="cpu")
        self.reach = torch.empty(0, dtype=torch.float64, device="cpu")
        self.spacing = self.floor = 0.0
        self.nets: tuple[Net, ...] = ()
        self._index: ops.SearchIndex | None = None

    def restore(self, vectors: Tensor, rows: Tensor, state: StreamState) -> None:
        """Go on from where a bank was saved."""
        self._put(vectors, rows, state.reach)
        self.spacing, self.floor = state.spacing, state.floor
        self.nets = tuple(replace(net, vectors=net.vectors.to(vectors.device)) for net in state.nets)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def radius(self) -> float:
        """Distance within which every row seen has a vector, as far as it is proved."""
        if not len(self):
            return 0.0
        reach = float(self.reach.max())
        return (min(reach, lowest(self.nets).radius) if self.nets else reach) * (1 + ROUNDING)

    @property
    def optimum(self) -> float:
        """Radius that the best ``size`` centers would leave at least, wherever they lie."""
        return best_possible(self.floor, self.nets)

    def take(self, block: Tensor, first: int) -> None:
        """Take a block (B, D) of float32 rows, of which the first has a number in the stream."""
        numbers = torch.arange(first, first + len(block), device="cpu")
        if not len(self):
            self._put(block[:1].clone(), numbers[:1], torch.zeros(1, dtype=torch.float64, device="cpu"))
        self.nets = tuple(net.taken(block, numbers, self.size) for net in self.nets)
        distances, nearest = self._search(block)
        far = distances > self.spacing
        self._raise(nearest[~far], distances[~far])
        self._take_centers()
        far &= ~torch.isin(numbers, self.rows).to(far.device)  # a center is there already
        if bool(far.any()):
            self._take_far(block[far], numbers[far.cpu()])

    def _put(self, vectors: Tensor, rows: Tensor, reach: Tensor) -> None:
        self.vectors, self.rows, self.reach, self._index = vectors, rows, reach, None

    def _search(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance (Q,) and the number (Q,) of each row's nearest vector."""
        if self._index is None:
            self._index = ops.SearchIndex(self.vectors, precision="half")
        distances, nearest = self._index.search(rows, 1)
        return distances[:, 0], nearest[:, 0]

    def _raise(self, places: Tensor, values: Tensor) -> None:
        """Let vectors stand for rows at these distances."""
        self.reach = self.reach.clone().scatter_reduce_(0, places.cpu(), values.double().cpu(), "amax")

    def _join(self, vectors: Tensor, rows: Tensor) -> None:
        """Put vectors to the others, which may be more than it may hold: :meth:`_select` follows then."""
        reach = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
        self._put(torch.cat([self.vectors, vectors]), torch.cat([self.rows, rows]), torch.cat([self.reach, reach]))

    def _take_centers(self) -> None:
        """Take the centers of the lowest net that are not there."""
        if not self.nets:
            return
        net = lowest(self.nets)
        new = ~torch.isin(net.rows, self.rows)
        if bool(new.any()):
            self._join(net.vectors[new.to(net.vectors.device)], net.rows[new])
            if len(self) > self.size:
                self._select()

    def _take_far(self, rows: Tensor, numbers: Tensor) -> None:
        """Take rows that were farther than the spacing."""
        room = min(self.size - len(self), len(rows))
        picked = None
        if len(rows) <= _HOPE * room:  # of more there is hardly room for what covers them
            picked = ops.extend_coreset(rows, self.vectors, radius=self.spacing, n_select=room)
        if picked is None or picked.covering_radius > self.spacing:
            self._join(rows, numbers)
            self._select()
            return
        self._join(rows[picked.indices], numbers[picked.indices.cpu()])
        distances, nearest = self._search(rows)
        self._raise(nearest, distances)

    def _select(self) -> None:
        """Keep the centers of the lowest net and the farthest of the other vectors."""
        if not self.nets:
            self._make_nets()
        core = (
            torch.isin(self.rows, lowest(self.nets).rows) if self.nets else torch.arange(len(self), device="cpu") == 0
        )
        fixed, others = core.nonzero()[:, 0], (~core).nonzero()[:, 0]
        places = others.to(self.vectors.device)
        greedy = ops.extend_coreset(
            self.vectors[places], self.vectors[fixed.to(places.device)],
            n_select=min(self.size + 1 - len(fixed), len(others)),
        )  # fmt: skip
        picks, radii = others[greedy.indices.cpu()], greedy.radii.tolist()
        if len(fixed) + len(picks) <= self.size:  # the others are copies
            self._reduce(torch.cat([fixed, picks]))
            return
        # size + 1 vectors, each two of them as far apart as the last pick, or farther than twice the level.
        self.floor = max(self.floor, min(radii[-1], 2 * lowest(self.nets).level) / 2)
        keep = max(self.size - self.size // _SLACK - len(fixed), 0)
        self.spacing = max(self.spacing, radii[keep])
        self._reduce(torch.cat([fixed, picks[:keep]]))

    def _make_nets(self) -> None:
        """Make nets if there are more than ``size`` different vectors, which are all rows seen so far."""
        greedy = ops.k_center_greedy(self.vectors, min(self.size + 1, len(self)), return_radius=True)
        self.floor = float(greedy.radii[-1]) / 2 if len(self) > self.size else 0.0
        if self.floor > 0:
            growth, number = plan(self.factor)
            self.nets = first_nets(self.vectors, self.rows, self.floor, growth, number, self.size)

    def _reduce(self, kept: Tensor) -> None:
        """Keep some of the vectors; the others hand their rows on to the nearest of these."""
        left = torch.ones(len(self), dtype=torch.bool, device="cpu")
        left[kept] = False
        vectors, reach = self.vectors[left.to(self.vectors.device)], self.reach[left]
        self._put(self.vectors[kept.to(self.vectors.device)], self.rows[kept], self.reach[kept])
        if len(vectors):
            distances, nearest = self._search(vectors)
            self._raise(nearest, distances.double().cpu() + reach)
