"""Sparse random projection to the space in which the coreset is selected (Johnson-Lindenstrauss)."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank._internal.checks import check_index

_EPS = 0.9  # the distortion that PatchCore and M3DM allow
_ENTRIES_AT_ONCE = 1 << 20  # of the matrix, while it is drawn


def johnson_lindenstrauss_dim(n_rows: int, eps: float = _EPS) -> int:
    """Return the dimension that keeps all pairwise squared distances of ``n_rows`` rows within a factor 1 +- eps.

    ``4 ln N / (eps^2/2 - eps^3/3)`` (Dasgupta and Gupta 2003), rounded down as scikit-learn does.

    Example:
        >>> johnson_lindenstrauss_dim(62720), johnson_lindenstrauss_dim(765184)
        (272, 334)
    """
    return int(4 * math.log(n_rows) / (eps**2 / 2 - eps**3 / 3))


class SparseProjection:
    """A seeded sparse random matrix R, (dim_in, dim_out): rows are mapped by ``x @ R``.

    An entry is 0 with probability ``1 - p`` and ``+-1/sqrt(p * dim_out)`` with ``p/2`` each, ``p = 1/sqrt(dim_in)``
    (Achlioptas 2003; Li, Hastie and Church 2006; scikit-learn's ``SparseRandomProjection`` with its default density).

    The entries come from the raw 64-bit output of PCG64, whose stream NumPy keeps fixed, not from a distribution
    method, which may change with a NumPy release: a bank can be extended years later in the space it was selected in.
    An output value is a sum over its few non-zero inputs in ascending order, so it depends neither on how
    the rows are cut into blocks nor on the number of threads.

    Args:
        dim_in: Length of a feature vector.
        dim_out: Length of a projected vector, 1 to ``dim_in``.
        seed: Non-negative integer.

    Example:
        >>> import torch
        >>> SparseProjection(64, 16, seed=0)(torch.ones(5, 64)).shape
        torch.Size([5, 16])
    """

    def __init__(self, dim_in: int, dim_out: int, seed: int) -> None:
        self.dim_in = dim_in
        self.dim_out = check_index(dim_out, "projection_dim", 1, dim_in, "the length of a feature vector")
        self.seed = check_index(seed, "seed", 0, 2**63 - 1, "seeds are not negative")
        self._density = 1 / math.sqrt(dim_in)
        self._scale = 1 / math.sqrt(self._density * dim_out)

    @functools.cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (n,) and signs (n,) of the non-zero entries, output after output, and where each output's start.

        Made when they are first needed, some outputs at a time: a bank that is only searched does not need them, and a
        file's header alone may not ask for memory.
        """
        threshold = np.uint64(self._density * 2**63)
        generator = np.random.PCG64(self.seed)
        inputs, signs, counts = [], [], []
        step = max(1, _ENTRIES_AT_ONCE // self.dim_in)
        for first in range(0, self.dim_out, step):
            rows = min(step, self.dim_out - first)
            raw = generator.random_raw(rows * self.dim_in).reshape(rows, self.dim_in)
            # The upper 63 bits decide whether an entry is there, the lowest one its sign.
            outputs, found = np.nonzero((raw >> np.uint64(1)) < threshold)
            inputs.append(found)
            signs.append(1.0 - 2.0 * (raw[outputs, found] & np.uint64(1)).astype(np.float32))
            counts.append(np.bincount(outputs, minlength=rows))
        starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))[:-1]])
        return (
            torch.from_numpy(np.concatenate(inputs)),
            torch.from_numpy(starts),
            torch.from_numpy(np.concatenate(signs)),
        )

    @classmethod
    def create(
        cls, dim_in: int, n_rows: int, projection_dim: int | Literal["auto"] | None, seed: int
    ) -> SparseProjection | None:
        """Return the projection that ``projection_dim`` asks for: ``"auto"`` for the Johnson-Lindenstrauss dimension.

        None if none was asked for, or if ``"auto"`` would not make the vectors shorter.
        """
        if projection_dim is None:
            return None
        if projection_dim == "auto":
            projection_dim = max(1, johnson_lindenstrauss_dim(n_rows))
            if projection_dim >= dim_in:
                return None
        return cls(dim_in, projection_dim, seed)

    def __call__(self, rows: Tensor) -> Tensor:
        """Project rows: (N, dim_in) float32 -> (N, dim_out) float32 on the same device."""
        projected = torch.empty(len(rows), self.dim_out, dtype=torch.float32, device=rows.device)
        inputs, starts, signs = (tensor.to(rows.device) for tensor in self._entries)
        # A few hundred rows at a time stay in the CPU's cache; each of their columns is read dim_out / sqrt(D) times.
        step = 4096 if rows.is_cuda else 512
        for first in range(0, len(rows), step):
            columns = rows[first : first + step].T.contiguous()
            sums = F.embedding_bag(inputs, columns, starts, mode="sum", per_sample_weights=signs)
            projected[first : first + step] = sums.T
        return projected.mul_(self._scale)
