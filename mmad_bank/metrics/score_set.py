"""A multiset of scores, sorted only as far as a question asks, in memory up to a limit and in a file past it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

MEMORY = 256 << 20
"""Bytes of scores that an accumulator keeps in memory before it goes on in a temporary file."""

_RUN = 1 << 22  # scores in a run: 16 MiB
_BINS = 1 << 16
# The upper half of a float32's bits rises with a positive value and falls with a negative one, whose sign bit is set.
_BINS_IN_ORDER = np.concatenate([np.arange(_BINS - 1, _BINS // 2 - 1, -1), np.arange(_BINS // 2)])


class Run:
    """Scores in an array of their own, which may be sorted in place, and how many there are in each bin.

    A bin holds the scores whose upper 16 bits are the same; bins are numbered in the order of their scores.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values, self._sorted = values, False
        self.histogram = np.bincount(self._upper_halves(), minlength=_BINS)[_BINS_IN_ORDER]

    def __len__(self) -> int:
        return len(self._values)

    def in_bins(self, wanted: np.ndarray) -> np.ndarray:
        """Return the scores in bins, given as bool (65536,)."""
        by_bits = np.empty_like(wanted)
        by_bits[_BINS_IN_ORDER] = wanted
        return self._values[by_bits[self._upper_halves()]]

    def sorted(self) -> np.ndarray:
        """Return the scores sorted."""
        if not self._sorted:
            self._values.sort()
            self._sorted = True
        return self._values

    def _upper_halves(self) -> np.ndarray:
        return (self._values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


class ScoreSet:
    """A multiset of float32 scores in runs, in memory up to a limit and in an unnamed file past it."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._file: IO[bytes] | None = None
        self._runs: list[Run] = []
        self._loose: list[np.ndarray] = []
        self._n_loose = 0
        self._in_runs = 0

    def __len__(self) -> int:
        return self._in_runs + self._n_loose

    @classmethod
    def union(cls, parts: Sequence[ScoreSet]) -> ScoreSet:
        """Return the multiset of all scores of several, on the runs that they hold."""
        whole = cls(parts[0]._memory)
        for part in parts:
            whole._runs += part.runs()
            whole._in_runs += len(part)
        return whole

    def add(self, values: np.ndarray) -> None:
        """Add a flat float32 array."""
        for part in np.split(values, range(_RUN, len(values), _RUN)):
            if self._n_loose + len(part) > _RUN:
                self._close_run()
            self._loose.append(part)
            self._n_loose += len(part)

    def runs(self) -> list[Run]:
        """Return the runs, which hold everything."""
        self._close_run()
        return self._runs

    def count_below(self, values: np.ndarray) -> np.ndarray:
        """Count the scores < each value."""
        return self._count(values, "left")

    def count_up_to(self, values: np.ndarray) -> np.ndarray:
        """Count the scores <= each value."""
        return self._count(values, "right")

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the scores at these positions of the sorted whole; only the bins that they are in get sorted."""
        histogram = np.sum([run.histogram for run in self.runs()], axis=0)
        upto = np.cumsum(histogram)
        bins = np.searchsorted(upto, positions, "right")
        wanted = np.zeros(_BINS, dtype=bool)
        wanted[bins] = True
        scores = np.sort(np.concatenate([run.in_bins(wanted) for run in self._runs]))
        left_out = np.cumsum(np.where(wanted, 0, histogram))  # in unwanted bins, up to each bin
        return scores[positions - left_out[bins]]

    def _count(self, values: np.ndarray, side: Any) -> np.ndarray:
        counts = np.zeros(len(values), dtype=np.int64)
        for run in self.runs():
            counts += np.searchsorted(run.sorted(), values, side)
        return counts

    def _close_run(self) -> None:
        if not self._n_loose:
            return
        values = np.concatenate(self._loose)
        self._loose, self._n_loose = [], 0
        self._in_runs += len(values)
        fits = 4 * self._in_runs <= self._memory
        self._runs.append(Run(values if fits else self._on_disk(values)))

    def _on_disk(self, values: np.ndarray) -> np.ndarray:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the runs that are mapped from it)
        offset = self._file.seek(0, 2)
        self._file.write(values.data)
        self._file.flush()
        return np.memmap(self._file, dtype=np.float32, mode="r+", offset=offset, shape=values.shape)
