"""What shards have found, made one answer: that of a single index, to the bit.

An index sorts by float64 squared distances, equal ones by row, and returns float32 distances. Rounding keeps the order,
so rows of different float32 distances are in order by these. Where rows of different shards have one float32 distance,
the float64 ones are needed. They depend on the query and the vector only, and so does the search's answer: it is asked
again, for these queries, among the few vectors that may be nearest. Those are the k nearest of every shard, so the k
nearest of all are among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmad_bank import ops

_AT_ONCE = 256  # queries whose candidates are gathered together


def merged(
    queries: Tensor, found: Sequence[tuple[Tensor, Tensor]], k: int, gather: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the k nearest of all rows that shards have found.

    Args:
        queries: float32 (Q, D).
        found: Of each shard, in the order of the rows, distances float32 (Q, n) and rows of the whole bank int64
            (Q, n): its k nearest, or all that it has, as :class:`mmad_bank.ops.SearchIndex` finds them.
        k: Number of neighbours, at most as many as all shards have found.
        gather: Function that returns vectors by number: int64 (n,) -> float32 (n, D).

    Example:
        >>> vectors = torch.tensor([[3.0], [1.0], [1.0]])
        >>> parts = [(torch.tensor([[1.0]]), torch.tensor([[1]])), (torch.tensor([[1.0]]), torch.tensor([[2]]))]
        >>> merged(torch.tensor([[0.0]]), parts, 1, vectors.__getitem__)
        (tensor([[1.]]), tensor([[1]]))
    """
    if len(found) == 1:
        return found[0]
    distances, rows = (torch.cat(columns, 1) for columns in zip(*found, strict=True))
    shards = torch.repeat_interleave(
        torch.arange(len(found), device=distances.device),
        torch.tensor([own.shape[1] for own, _ in found], device=distances.device),
    )
    ordered, order = distances.sort(dim=1, stable=True)  # a shard's own order is right
    best, nearest = ordered[:, :k].clone(), rows.gather(1, order)[:, :k].clone()
    limit, of = ordered[:, k - 1 : k], shards[order]
    equal = (ordered[:, 1:] == ordered[:, :-1]) & (of[:, 1:] != of[:, :-1]) & (ordered[:, 1:] <= limit)
    tied = equal.any(1).nonzero()[:, 0]
    for some in tied.split(_AT_ONCE) if len(tied) else ():
        candidates = rows[some][distances[some] <= limit[some]].unique()  # ascending, so that ties go to the lowest row
        again, place = ops.knn(queries[some], gather(candidates), k)
        best[some], nearest[some] = again, candidates[place]
    return best, nearest


__all__ = ["merged"]
