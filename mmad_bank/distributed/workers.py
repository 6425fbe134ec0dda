"""What holds a share of the rows while others decide: it reads, projects and compares them where they lie."""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.arrays import array_of
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.standardization import BlockSums
from mmad_bank.distributed.shares import Share
from mmad_bank.errors import InputError
from mmad_bank.ops.k_center_shards import KCenterShard

Folder = str | os.PathLike[str]


class ReadSoFar(NamedTuple):
    """What a worker tells of the blocks that it has just read.

    Attributes:
        rows: Number of rows that it has read in all.
        sums: The blocks' sums, if there is a shift to take them about.
        problem: The first row of a block that cannot be used, and what is wrong with it; None if all is well.
    """

    rows: int
    sums: list[BlockSums]
    problem: tuple[int, str] | None = None


class Offer(NamedTuple):
    """A worker's candidates, see :class:`mmad_bank.ops.k_center_shards.Candidates`; rows are numbered in the dump."""

    squared: np.ndarray
    rows: np.ndarray
    above: int
    below: float


class Memory(NamedTuple):
    """A process's memory in bytes: the most that was resident at a time, and what is its own now; 0 if unknown."""

    peak: int
    own: int

    @classmethod
    def now(cls) -> Memory:
        """Return this process's, as the kernel tells it."""
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii")
        except OSError:
            return cls(0, 0)
        found = dict(re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", status, re.MULTILINE))
        return cls(1024 * int(found.get("VmHWM", 0)), 1024 * int(found.get("RssAnon", 0)))


class Worker:
    """A share of the rows, in the selection space.

    Messages are NumPy arrays, and rows are numbered as in the whole dump.

    Args:
        share: The rows, or where they are.
        projection: Projection to the selection space.
        shift: What the blocks' sums are taken about; None if nobody asks for them.
        scratch: Folder for a file of the rows and one of their rounded copy; default: they are in memory.
        threads: Number of threads.
        device: Where the rows meet the centres, ``"cpu"`` or ``"cuda"``; they are read and projected on the CPU.

    Example:
        >>> worker = Worker(Share([(10, 3)], rows=np.array([[0], [3], [5]], np.float32)))
        >>> worker.read(1).rows
        3
        >>> worker.begin(n_centers=2)
        >>> worker.go_on(0, np.zeros((1, 1), np.float32), np.array([10]), np.empty(0), 4.0, 1)
        Offer(squared=array([25.]), rows=array([12]), above=2, below=0.0)
    """

    def __init__(
        self,
        share: Share,
        projection: SparseProjection | None = None,
        shift: float | None = None,
        scratch: Folder | None = None,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._share, self._projection, self._shift = share, projection, shift
        self._scratch, self._threads, self._device = scratch, threads, device
        self._blocks_read = self._rows_read = 0
        self._met = 0
        self._pool = np.empty(0, np.int64)
        self._space: _Space | None = None
        self._rows: Tensor | None = None
        self._shard: KCenterShard | None = None

    def read(self, n_blocks: int) -> ReadSoFar:
        """Read the next blocks of the share, as many as there are.

        Raises:
            InputError: The scratch folder does not hold them.
        """
        self._make_room()
        sums: list[BlockSums] = []
        last = min(self._blocks_read + n_blocks, len(self._share.ranges))
        for block in range(self._blocks_read, last):
            try:
                rows = self._share.read(block).cpu()
            except InputError as error:
                return ReadSoFar(self._rows_read, sums, (self._share.ranges[block][0], str(error)))
            if self._shift is not None:
                sums.append(BlockSums.of(rows, self._shift))
            if self._space is not None:
                self._space.write(self._rows_read, rows if self._projection is None else self._projection(rows))
            self._rows_read += len(rows)
        self._blocks_read = last
        return ReadSoFar(self._rows_read, sums)

    def _make_room(self) -> None:
        if self._rows is None and self._space is None:
            if self._projection is None and self._scratch is None:
                self._rows = self._share.whole()
            if self._rows is None:
                dim = self._share.dim if self._projection is None else self._projection.dim_out
                self._space = _Space(len(self._share.numbering), dim, self._scratch)

    def begin(self, n_centers: int) -> None:
        """Make ready for so many centres."""
        if self._space is not None:
            self._rows = self._space.rows()
        assert self._rows is not None
        self._shard = KCenterShard(
            self._rows,
            n_centers=n_centers,
            threads=self._threads,
            scratch=self._scratch,
            file=None if self._space is None else self._space.file,
            device=self._device,
        )

    def go_on(
        self, known: int, centers: np.ndarray, rows: np.ndarray, values: np.ndarray, bar: float, wanted: int
    ) -> Offer:
        """Meet the newest centres, take in what became of the pool, and rise to a bar.

        A worker that has met these centres already, because it was made anew meanwhile, only rises.

        Args:
            known: Number of centres before these.
            centers: float32 (C, d).
            rows: int64 (C,), their rows in the dump; -1 for centres that are not of it.
            values: float64, those of the rows that were gathered last.
            bar: Squared distance.
            wanted: Number of candidates that are of use.
        """
        assert self._shard is not None
        if self._met == known:
            self._meet(centers, rows)
            if len(self._pool):
                self._shard.settle(torch.from_numpy(self._share.numbering.here(self._pool)), torch.tensor(values))
            self._pool = np.empty(0, np.int64)
        return self.rise(bar, wanted)

    def catch_up(self, n_blocks: int, n_centers: int | None, centers: np.ndarray, rows: np.ndarray) -> None:
        """Do what a worker has done in whose place this one is: read, begin, and meet all centres so far.

        What that one was told of the pools' rows is computed again when it is asked for.

        Raises:
            InputError: A file cannot be read any more.
        """
        problem = self.read(n_blocks).problem
        if problem is not None:
            raise InputError(problem[1])
        if n_centers is not None:
            self.begin(n_centers)
            self._meet(centers, rows)

    def _meet(self, centers: np.ndarray, rows: np.ndarray) -> None:
        if self._shard is not None and len(centers):
            self._shard.meet(torch.tensor(centers), own=torch.from_numpy(self._share.numbering.here(rows)))
            self._met += len(centers)

    def rise(self, bar: float, wanted: int) -> Offer:
        """Rise to another bar."""
        assert self._shard is not None
        found = self._shard.rise(bar, wanted)
        numbers = self._share.numbering.in_all(array_of(found.rows))
        return Offer(array_of(found.squared), numbers, found.above, found.below)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of the pool in the selection space: float32 (n, d)."""
        assert self._rows is not None
        self._pool = np.array(rows)
        return self._own(rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows as they are in the dump: float32 (n, D)."""
        if self._projection is None:
            return self._own(rows)
        return array_of(self._share.take(np.array(rows)))

    def _own(self, rows: np.ndarray) -> np.ndarray:
        assert self._rows is not None
        here = self._share.numbering.here(rows)
        if self._space is not None:
            self._space.expect(here)
        return array_of(self._rows[torch.from_numpy(here)])

    def memory(self) -> Memory:
        """Return how much memory the process takes."""
        return Memory.now()


class WorkerProcess(Worker):
    """A worker that has a process to itself, with PyTorch's threads.

    ``OMP_NUM_THREADS`` may say something else there: what suits the program that asks, which has all cores. It works in
    the program's folder ``home``, where there is such a one, so that relative paths mean the same.
    """

    def __init__(
        self,
        share: Share,
        projection: SparseProjection | None = None,
        shift: float | None = None,
        scratch: Folder | None = None,
        threads: int = 1,
        device: str = "cpu",
        home: Folder | None = None,
    ) -> None:
        if home is not None:
            with suppress(OSError):
                os.chdir(home)
        torch.set_num_threads(threads)
        super().__init__(share, projection, shift, scratch, threads, device)


class _Space:
    """Room for rows: in memory, or in a file without a name that is mapped once it is written."""

    def __init__(self, n_rows: int, dim: int, folder: Folder | None) -> None:
        self._shape, self._folder = (n_rows, dim), folder
        self._rows = torch.empty(n_rows, dim) if folder is None else None
        self._mapped: mmap.mmap | None = None
        if folder is not None:
            try:
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the worker)
                _reserve(self._file.fileno(), 4 * n_rows * dim)
            except OSError as error:
                raise self._failure(error) from None

    def write(self, first: int, rows: Tensor) -> None:
        """Put rows to their places."""
        if self._rows is not None:
            self._rows[first : first + len(rows)] = rows
            return
        try:
            self._file.seek(4 * first * self._shape[1])
            self._file.write(array_of(rows.contiguous()).data)
        except OSError as error:
            raise self._failure(error) from None

    def rows(self) -> Tensor:
        """Return all rows."""
        if self._rows is None:
            self._file.flush()
            size = 4 * self._shape[0] * self._shape[1]
            if not size:
                return torch.empty(self._shape)
            self._mapped = mmap.mmap(self._file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            self._rows = torch.frombuffer(self._mapped, dtype=torch.float32).view(self._shape)
        return self._rows

    @property
    def file(self) -> int | None:
        """Descriptor of the file; None in memory."""
        return None if self._folder is None else self._file.fileno()

    def expect(self, rows: np.ndarray) -> None:
        """Have the system read rows that will be taken, all at a time: it would wait for each otherwise."""
        if self._mapped is None or not hasattr(mmap, "MADV_WILLNEED"):
            return
        row_bytes = 4 * self._shape[1]
        for first in (rows * row_bytes).tolist():
            start = first // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_WILLNEED, start, first + row_bytes - start)

    def _failure(self, error: OSError) -> InputError:
        n_rows, dim = self._shape
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return InputError(f"scratch: {self._folder}: expected a folder, found none")
        return InputError(
            f"scratch: {self._folder}: cannot hold a file of {4 * n_rows * dim / 1e6:,.0f} MB"
            f" ({error.strerror or error})"
        )


def _reserve(file: int, size: int) -> None:
    """Take the file's blocks now, where the system can: a full disk is told before hours of work."""
    if not hasattr(os, "posix_fallocate") or not size:
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
