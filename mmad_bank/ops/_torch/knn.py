"""Certified search in plain PyTorch: any device PyTorch runs on, before or without the native kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmad_bank._internal.checks import check_finite
from mmad_bank._internal.precision import exact_float32

_BLOCK_BYTES = 256 << 20  # bound on one block of the distance matrix
_SLACK = 16  # neighbours kept beyond k for the float64 recheck
_TINY = 2.0**-90  # covers underflow in the scaled products
_LONGEST = 2.0**60  # of two scaled norms together; no sum of products overflows


class TorchIndex:
    """float32 matrix products screen, float64 differences decide.

    With u the unit roundoff, a float32 inner product of D terms in any order of summation errs by at most
    ((1 + u)^D - 1) |q| |m| (Higham 2002, sec. 3.1), so twice that bounds the squared distance. A query is certified
    when its k-th exact distance lies below the lower bound of every vector that was not rechecked; the few that are not
    go through all rows in float64.

    Rows are scaled by a power of two that takes the longest to a norm of about 2^32, so that squares neither overflow
    nor underflow in float32 where they count (csrc/include/mmad/operand.hpp has the argument). Queries that are too
    long for that all the same are never certified.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.center = vectors.mean(0, dtype=torch.float64).float()
        centred = vectors - self.center
        self.factor = _scale(float(centred.double().square().sum(1).max().sqrt()))
        self.rows = centred * self.factor
        self.squared = self.rows.double().square().sum(1)
        self.largest_norm = float(self.squared.max().sqrt())

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.squared.nbytes + self.center.nbytes

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        check_finite(queries, "queries")
        rows_a_block = max(1, _BLOCK_BYTES // (4 * len(self.rows)))
        with exact_float32(queries.device):
            parts = [self._search_block(block, k) for block in queries.split(rows_a_block)]
        return torch.cat([d for d, _ in parts]), torch.cat([i for _, i in parts])

    def gather(self, rows: Tensor) -> Tensor:
        return self.vectors[rows]

    def _search_block(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        centred = (queries - self.center) * self.factor
        partial = torch.addmm(self.squared.float(), centred, self.rows.T, alpha=-2.0)
        kept = min(len(self.rows), k + _SLACK)
        screened = partial.topk(kept, dim=1, largest=False)
        squared = (queries[:, None].double() - self.vectors[screened.indices].double()).square_().sum(-1)
        squared, rows = _sort_by_distance_then_row(squared, screened.indices)
        norms = centred.double().square().sum(1)
        if kept < len(self.rows):
            lower = screened.values[:, -1].double() + norms - self._error(norms.sqrt())
            certified = squared[:, k - 1] * self.factor**2 < lower  # not where the bound is -infinity or NaN
            self._redo_uncertified(~certified, queries, squared, rows)
        return squared[:, :k].sqrt().float(), rows[:, :k].contiguous()

    def _error(self, query_norm: Tensor) -> Tensor:
        dim = self.rows.shape[1]
        unit = 2.0**-24
        if self.rows.is_cuda and torch.get_float32_matmul_precision() != "highest":
            unit = 2.0**-8  # the products may be taken in TF32 or bfloat16
        # The product, the addition of |m|^2, and the rounding of the centred rows themselves.
        relative = math.expm1(min((dim + 4) * unit, 500.0))
        reach = query_norm + self.largest_norm
        error = 2.0 * relative * reach.square() + _TINY
        return torch.where(reach <= _LONGEST, error, math.inf)

    def _redo_uncertified(self, uncertain: Tensor, queries: Tensor, squared: Tensor, rows: Tensor) -> None:
        kept = squared.shape[1]
        for query in uncertain.nonzero()[:, 0].tolist():
            wide = torch.cat(
                [(block.double() - queries[query].double()).square_().sum(1) for block in self.vectors.split(65536)]
            )
            order = torch.sort(wide, stable=True)
            squared[query], rows[query] = order.values[:kept], order.indices[:kept]


def _scale(largest_norm: float) -> float:
    """Return the power of two for rows of this norm at most; its square is a float64, itself a float32."""
    if not (0.0 < largest_norm < math.inf):
        return 1.0
    return 2.0 ** min(max(33 - math.frexp(largest_norm)[1], -28), 126)


def _sort_by_distance_then_row(squared: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    by_row = rows.argsort(dim=1)
    squared, rows = squared.gather(1, by_row), rows.gather(1, by_row)
    order = squared.sort(dim=1, stable=True)
    return order.values, rows.gather(1, order.indices)
