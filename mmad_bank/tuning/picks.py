"""One greedy selection for all ratios."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.files import replacing
from mmad_bank._internal.resume import Stages, counted, wording
from mmad_bank._internal.shares import percent
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.reporting import Report
from mmad_bank.bank.selection import coreset_size


class Picks:
    """The greedy selection, as far as it has been needed: its first n picks are the coreset of size n."""

    def __init__(
        self, rows: Tensor, projection: SparseProjection | None, stages: Stages | None, report: Report
    ) -> None:
        self.rows, self._report = rows, report
        self._space = rows
        if projection is not None:
            self._space = torch.cat([projection(block) for block in rows.split(16384)])
        self._indices = torch.empty(0, dtype=torch.int64)
        self._seconds = 0.0
        self._path = None if stages is None else stages.state("picks.npy")
        if self._path is not None and self._path.exists():
            self._indices = torch.from_numpy(np.load(self._path))

    def size(self, ratio: float) -> int:
        """Return how many rows a ratio takes."""
        return coreset_size(len(self.rows), ratio, None)

    def expected_seconds(self, ratio: float) -> float:
        """Guess how long the selection takes: every pick costs about the same."""
        more = 0 if ratio == 1 else max(0, self.size(ratio) - len(self._indices))
        return more * self._seconds / max(1, len(self._indices))

    def vectors(self, ratio: float) -> Tensor:
        """Return the coreset of a ratio; of 1 all rows in their own order."""
        if ratio == 1:
            return self.rows
        wanted = self.size(ratio)
        if wanted > len(self._indices):
            begin = time.monotonic()
            self._grow(wanted, lambda done, total: self._report(f"Selecting {percent(ratio)}", done, total))
            self._seconds += time.monotonic() - begin
        return self.rows[self._indices[:wanted]]

    def _grow(self, wanted: int, progress: Callable[[int, int], None]) -> None:
        have = len(self._indices)
        if not have:
            self._indices = ops.k_center_greedy(self._space, wanted, progress=progress)
        else:
            more = ops.extend_coreset(
                self._space, self._space[self._indices], n_select=wanted - have, progress=progress
            ).indices
            self._indices = torch.cat([self._indices, more])
            if len(self._indices) < wanted:  # all others are copies: the greedy selection takes the lowest rows
                free = torch.ones(len(self.rows), dtype=torch.bool)
                free[self._indices] = False
                self._indices = torch.cat([self._indices, free.nonzero()[: wanted - len(self._indices), 0]])
        if self._path is not None:
            with replacing(self._path) as partial, partial.open("wb") as file:
                np.save(file, self._indices.numpy())


@wording(r"(picks)\.npy")
def _word_picks(path: Path, _: str) -> str:
    return counted(len(np.load(path, mmap_mode="r")), "selected row")
