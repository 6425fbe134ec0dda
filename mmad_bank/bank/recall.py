"""How thoroughly an approximate index searches, and what it is measured against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmad_bank import ops

_BLOCK_ROWS = 16384
_ROWS_AT_ONCE = 1 << 16  # of the exact search that recall is measured against


class SearchSettings(NamedTuple):
    """How thoroughly a FAISS index searches, and what of the exact answers it found with that."""

    nprobe: int | None = None
    """Lists of an inverted file that a query looks into; None for an index without."""
    ef_search: int | None = None
    """Candidates that the search of a graph (HNSW) keeps; None for an index without."""
    recall: float | None = None
    """Share of sampled queries whose nearest vector was found; None if it was not measured with these settings."""


class Sample(NamedTuple):
    """Queries whose exact answers are known: what the recall of an index is measured on."""

    queries: Tensor
    k: int
    """1, or 2 where the queries are vectors of the bank, which find themselves first."""
    distances: Tensor
    """(n,) to the k-th nearest vector."""

    @classmethod
    def draw(cls, vectors: Tensor, others: Tensor | None = None, *, n: int = 256, seed: int = 0) -> Sample:
        """Take queries and find their nearest vectors by exact search.

        Args:
            vectors: (M, D) vectors of the bank.
            others: Features that are not in the bank; default: vectors of the bank, which then do not count as their
                own neighbours.
            n: Largest number of queries.
            seed: Seed of the draw.
        """
        source, k = (vectors, min(2, len(vectors))) if others is None else (others, 1)
        chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:n]
        queries = source[chosen.to(source.device)].to(vectors.device)
        best = queries.new_empty(len(queries), 0)
        for block in vectors.split(_ROWS_AT_ONCE):  # the copy that an exact search makes is of a block only
            best = torch.cat([best, ops.knn(queries, block, min(k, len(block)))[0]], 1).sort(dim=1).values[:, :k]
        return cls(queries, k, best[:, -1])


def exact_search(queries: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search a few queries exactly without any resident copy: distances from differences, a block of rows at a time."""
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[first : first + _BLOCK_ROWS]
        found = torch.cdist(queries, block, compute_mode="donot_use_mm_for_euclid_dist")
        rows = torch.arange(first, first + len(block), device=queries.device).expand(len(queries), -1)
        # Earlier rows come first and the sort is stable, so equal distances go to the lowest row.
        order = torch.cat([distances, found], 1).sort(dim=1, stable=True)
        distances = order.values[:, :k]
        indices = torch.cat([indices, rows], 1).gather(1, order.indices[:, :k])
    return distances, indices
