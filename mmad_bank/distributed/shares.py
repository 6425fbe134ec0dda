"""A dump cut into shares, one for each worker: blocks of its rows in turn, so that all have about as many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import as_float_tensor
from mmad_bank.bank.dumps import FeatureDump

Ranges = Sequence[tuple[int, int]]
"""(first row, number of rows) of runs of rows, ascending."""


class Numbering:
    """The numbers of a share's rows in the whole dump. Both ascend together, so ties are broken in the same way.

    Example:
        >>> numbering = Numbering([(0, 2), (10, 3)])
        >>> numbering.in_all(np.array([1, 2, 4])), numbering.here(np.array([11, 5, 0]))
        (array([ 1, 10, 12]), array([ 3, -1,  0]))
    """

    def __init__(self, ranges: Ranges) -> None:
        self._firsts = np.array([first for first, _ in ranges], np.int64)
        counts = np.array([count for _, count in ranges], np.int64)
        self._ends = self._firsts + counts
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def in_all(self, rows: np.ndarray) -> np.ndarray:
        """Return the numbers in the dump of rows of the share."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        return rows + (self._firsts[which] - self._starts[which]) if len(self) else rows

    def here(self, rows: np.ndarray) -> np.ndarray:
        """Return the numbers in the share of rows of the dump; -1 for rows of other shares."""
        if not len(self):
            return np.full(len(rows), -1)
        which = np.searchsorted(self._firsts, rows, side="right") - 1
        inside = (which >= 0) & (rows < self._ends[which])
        return np.where(inside, rows - self._firsts[which] + self._starts[which], -1)


@dataclass
class Share:
    """A worker's part of a dump: what it reads from files itself, or rows that it was sent.

    Attributes:
        ranges: Its blocks in the whole dump.
        dump: The dump, whose files the worker opens; None if the rows are here.
        rows: float32 (n, D), the rows; None if they are in files.
    """

    ranges: Ranges
    dump: FeatureDump | None = None
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.numbering = Numbering(self.ranges)

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self.rows.shape[1] if self.dump is None and self.rows is not None else self._files.dim

    @property
    def _files(self) -> FeatureDump:
        assert self.dump is not None
        return self.dump

    def whole(self) -> Tensor | None:
        """Return all rows where they are in memory already."""
        return None if self.rows is None else as_float_tensor(self.rows, "features")

    def read(self, block: int) -> Tensor:
        """Read a block of its rows, checked for NaN and infinity."""
        first, count = self.ranges[block]
        if self.rows is None:
            return self._files.read(first, count)
        here = int(self.numbering.here(np.array([first]))[0])
        return as_float_tensor(self.rows[here : here + count], "features")

    def take(self, rows: np.ndarray) -> Tensor:
        """Gather rows by their numbers in the dump: float32 (n, D)."""
        if not len(rows):
            return torch.empty(0, self.dim)
        if self.rows is None:
            return self._files.take(torch.from_numpy(rows)).cpu()
        return as_float_tensor(self.rows[self.numbering.here(rows)], "features")


class Cut:
    """A dump's blocks, dealt out to ``n_shares`` in turn.

    Example:
        >>> from mmad_bank.bank.dumps import open_dump
        >>> cut = Cut(open_dump(torch.zeros(7, 2)), 2, rows_at_once=2)
        >>> [share.ranges for share in cut.shares()], cut.owners(np.array([0, 2, 3, 6]))
        ([[(0, 2), (4, 2)], [(2, 2), (6, 1)]], array([0, 1, 1, 1]))
    """

    def __init__(self, dump: FeatureDump, n_shares: int, rows_at_once: int | None = None) -> None:
        self._dump, self.n_shares = dump, n_shares
        self.ranges = list(dump.ranges(rows_at_once))
        self._firsts = np.array([first for first, _ in self.ranges], np.int64)

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Return which share each row of the dump is in."""
        return (np.searchsorted(self._firsts, rows, side="right") - 1) % self.n_shares

    def shares(self) -> Iterator[Share]:
        """Yield the shares, one by one: rows in this process's memory are copied for whoever takes the share.

        Raises:
            InputError: Such a row holds NaN or infinity.
        """
        in_memory = any(part.in_memory for part in self._dump.parts)
        if in_memory:
            for first, count in self.ranges:  # in order, so that the first bad row of all is told
                self._dump.read(first, count)
        for number in range(self.n_shares):
            ranges = self.ranges[number :: self.n_shares]
            if in_memory:
                blocks = [self._dump.read(first, count).cpu().numpy() for first, count in ranges]
                yield Share(ranges, rows=np.concatenate([np.empty((0, self._dump.dim), np.float32), *blocks]))
            else:
                yield Share(ranges, dump=self._dump)
