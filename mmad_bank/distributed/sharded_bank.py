"""A bank whose vectors are searched in several processes or on several machines, each of which has some of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank import scoring
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, as_features, check_finite, check_index
from mmad_bank.bank import BankCalibration, MemoryBank, Origin, Scores, Source, Verdicts, file_format
from mmad_bank.bank.exact_index import ExactIndex
from mmad_bank.distributed.cluster import connect, machines, take_share, working_on
from mmad_bank.distributed.merging import merged
from mmad_bank.errors import FormatError, InputError
from mmad_bank.ops.knn import Precision

_MOST = 10_000  # shards, and copies of them
_TRIES = 3  # times that a search is given again to a shard whose process has died in it


class Shard:
    """Consecutive rows of a bank file and the exact search in them, as an actor of Ray.

    The rows are read at the first search, so that a process that takes the place of a dead one says what is wrong with
    the file as the first one would. Of the file nothing but these rows is read.

    Args:
        path: The bank file.
        known: Checksum of its vectors, which tells another bank of the same name apart.
        rows: The first row and the one behind the last.
        precision: Precision of the resident search copy.
        threads: Number of threads to search with; None takes a share of the machine's cores.
        processes: Number of shards that share the machine.
    """

    def __init__(
        self,
        path: str,
        known: str,
        rows: tuple[int, int],
        precision: Precision,
        threads: int | None,
        processes: int = 1,
    ) -> None:
        self._path, self._known, self._rows, self._precision = path, known, rows, precision
        self._index: ExactIndex | None = None
        self._state: file_format.FileState | None = None
        if threads is None:
            take_share(processes)
        else:
            torch.set_num_threads(threads)

    def _opened(self) -> ExactIndex:
        if self._index is None:
            file = file_format.read(self._path, verify=False, mapped=True)
            if checksum_of(file) != self._known:
                raise FormatError(f"{self._path}: expected the bank that was opened, found another one")
            first, last = self._rows
            own = file.tensors["vectors"][first:last]
            self._state, self._index = file.mapped, ExactIndex(own, self._precision, mapped=True, file=self._path)
        if self._state is not None:
            self._state.check()
        return self._index

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return distances float32 and rows of the whole bank int64, (Q, k) or as many columns as there are rows."""
        first, last = self._rows
        distances, found = self._opened().search(queries, min(k, last - first))
        return distances.numpy(), found.numpy() + first

    def nbytes(self) -> int:
        """Return the bytes of the search copy, which is made if it is not there yet."""
        index = self._opened()
        index.search(torch.zeros(1, index.gather(torch.tensor([0])).shape[1]), 1)
        return index.nbytes

    def process(self) -> int:
        """Return the number of the process."""
        return os.getpid()


class ShardedIndex:
    """Exact search in shards, with the answers of one index.

    Threads may search at the same time. A search goes to the copy of the shards with the fewest searches under way.

    Args:
        ray: The module, connected.
        replicas: Copies of all shards: actors in the order of their rows.
        gather: Function that returns vectors by number: int64 (n,) -> float32 (n, D).
        size: Number of vectors, and their length.
    """

    def __init__(
        self, ray: Any, replicas: Sequence[Sequence[Any]], gather: Callable[[Tensor], Tensor], size: tuple[int, int]
    ) -> None:
        self._ray, self._replicas, self._gather = ray, replicas, gather
        self._size, self._dim = size
        self._busy = [0] * len(replicas)
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Refuse further searches: without its shards Ray would start anew."""
        self._closed = True

    @property
    def nbytes(self) -> int:
        """Bytes of all resident copies together.

        Raises:
            InputError: The bank is closed; a shard cannot read its rows.
        """
        self._check_open("nbytes")
        with working_on(self._ray):
            return sum(self._answers([shard.nbytes.remote() for shards in self._replicas for shard in shards]))

    def _check_open(self, name: str) -> None:
        if self._closed:
            raise InputError(f"{name}: expected a sharded bank that is open, found a closed one")

    def _answers(self, calls: Sequence[Any]) -> list[Any]:
        """Return what all calls return, or raise the first error; Ray writes those that nobody has taken to stderr."""
        answers, failed = [], None
        for call in calls:
            try:
                answers.append(self._ray.get(call))
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return answers

    def search(self, queries: ArrayLike, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float32 (Q, k) and rows int64 (Q, k), nearest first; equal distances by lowest row.

        Raises:
            InputError: Queries that cannot be used, or ``k`` is out of range; a shard cannot read its rows.
        """
        rows = as_features(queries, "queries")
        if rows.shape[1] != self._dim:
            raise InputError(f"queries: expected {self._dim} columns as in the bank, found {rows.shape[1]}")
        check_index(k, "k", 1, self._size, "the number of vectors in the bank")
        check_finite(rows, "queries")
        self._check_open("queries")
        return merged(rows, self._found(rows, k), k, self._gather)

    def _found(self, rows: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
        """Return what each shard has found."""
        with self._lock:
            replica = self._busy.index(min(self._busy))
            self._busy[replica] += 1
        try:
            with working_on(self._ray):
                sent = self._ray.put(array_of(rows))  # once, for all shards
                answers = self._answers([shard.search.remote(sent, k) for shard in self._replicas[replica]])
        finally:
            with self._lock:
                self._busy[replica] -= 1
        return [(torch.tensor(distances), torch.tensor(found)) for distances, found in answers]

    def gather(self, rows: Tensor) -> Tensor:
        """Return vectors by number: int64 (...) -> (..., D)."""
        return self._gather(rows)

    def neighbors(self, rows: Tensor, k: int) -> Tensor:
        """Return the k exact nearest vectors of the bank's own ``rows``: int64 (Q, k)."""
        return self.search(self.gather(rows), k)[1]


class ShardedBank:
    """A saved bank that is searched as shards on Ray: one whose search copy is larger than a machine's memory.

    Each shard has consecutive rows of the file, which all machines must see at the same path, and searches them
    exactly; the nearest of all are merged. Answers are those of :class:`~mmad_bank.bank.MemoryBank` to the bit,
    whatever the number of shards: also of distances that are equal as float32, and of equal vectors in different
    shards, the lowest row of the whole bank comes first.

    A shard whose process dies is loaded again from the file, and the search is repeated. Threads may search at the same
    time. Make one with :meth:`load`, and close it, or use it in a ``with`` statement.

    Example:
        >>> import pathlib, tempfile, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "line.bank"
        >>> bank = MemoryBank(torch.rand(50, 4))
        >>> bank.save(path)
        >>> patches = torch.rand(2, 9, 4)
        >>> with ShardedBank.load(path, workers=2) as sharded:  # doctest: +SKIP
        ...     torch.equal(sharded.score(patches).image, bank.score(patches).image)
        True
    """

    def __init__(self, bank: MemoryBank, index: ShardedIndex, shards: list[range], closing: ExitStack) -> None:
        self._bank, self._index, self._closing = bank.searched_by(index), index, closing
        self.shards = shards
        """The rows of each shard."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        workers: int | None = None,
        address: str | None = None,
        replicas: int = 1,
        bank_precision: Precision | None = None,
        threads: int | None = None,
        verify: bool = True,
    ) -> ShardedBank:
        """Open a saved bank whose index is the exact one, and start its shards.

        Args:
            path: The file, as this process and those of the shards see it.
            workers: Number of shards; a bank of fewer rows has one for each. Default: one for each of the cluster's
                machines.
            address: Address of a Ray cluster, such as ``"auto"`` or ``"HOST:6379"``; default: the Ray that this process
                has joined, or one of its own on this machine.
            replicas: Number of copies of all shards, for throughput: searches that come at the same time go to
                different ones.
            bank_precision: Precision of the shards' search copies, see :meth:`MemoryBank.load`.
            threads: Number of threads of each shard; default: its share of its machine's cores.
            verify: Whether to compare the file with its checksums, in one pass by this process.

        Raises:
            InputError: No such file, an argument out of range, no cluster, or a bank with a FAISS index.
            FormatError: Truncated, altered, newer or foreign.
            MissingExtraError: Ray is not installed.
        """
        check_index(replicas, "replicas", 1, _MOST, "as many as a cluster may have")
        if threads is not None:
            check_index(threads, "threads", 1, _MOST, "as many as a machine may have")
        if workers is not None:
            check_index(workers, "workers", 1, _MOST, "as many as a cluster may have")
        # Read first: shards refuse a file that takes this one's place between the two.
        known = checksum_of(file_format.read(path, verify=False, mapped=True))
        bank = MemoryBank.load(path, bank_precision=bank_precision, verify=verify, mapped=True)
        if bank.index != "exact":
            raise InputError(f"{path}: expected a bank with the exact index, found {bank.index!r}")
        with ExitStack() as opened:
            ray = opened.enter_context(connect(address, workers))
            places, _ = machines(ray)
            shards = cut(len(bank), workers or places)
            together = -(-len(shards) * replicas // places)
            actor = ray.remote(max_restarts=-1, max_task_retries=_TRIES, scheduling_strategy="SPREAD")(Shard)
            place = os.path.abspath(path)
            actors = [
                [
                    actor.remote(place, known, (own.start, own.stop), bank.bank_precision, threads, together)
                    for own in shards
                ]
                for _ in range(replicas)
            ]
            for one in (one for replica in actors for one in replica):
                opened.callback(ray.kill, one)
            index = ShardedIndex(ray, actors, bank.vectors.__getitem__, (len(bank), bank.dim))
            return cls(bank, index, shards, opened.pop_all())

    def close(self) -> None:
        """End the shards' processes, and the Ray that was started for them."""
        self._index.close()
        self._closing.close()

    def __enter__(self) -> ShardedBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._bank)

    def __repr__(self) -> str:
        return f"ShardedBank({len(self)} x {self.dim}, {len(self.shards)} shards)"

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._bank.dim

    @property
    def nbytes(self) -> int:
        """Bytes of the search copies of all shards together, which are made if they are not there yet."""
        return self._index.nbytes

    @property
    def sources(self) -> list[Source]:
        """The files that the features came from, in order."""
        return self._bank.sources

    @property
    def extractor(self) -> str | None:
        """Name of the feature extractor."""
        return self._bank.extractor

    @property
    def radius(self) -> float | None:
        """Covering radius, as :attr:`MemoryBank.radius`."""
        return self._bank.radius

    @property
    def calibration(self) -> BankCalibration | None:
        """What scores of normal images are, or None."""
        return self._bank.calibration

    def search(self, queries: ArrayLike, k: int = 1) -> tuple[Tensor, Tensor]:
        """Find the k nearest bank vectors of each query, as :meth:`MemoryBank.search`.

        Args:
            queries: (Q, D) features, not standardized.
            k: Number of neighbours per query, 1 to ``len(bank)``.

        Returns:
            Euclidean distances float32 (Q, k) and bank rows int64 (Q, k), nearest first.

        Raises:
            InputError: As there; or a shard cannot read its rows, or dies again and again.
        """
        return self._bank.search(queries, k)

    def score(
        self,
        patches: ArrayLike,
        *,
        reweight: scoring.Reweight = "m3dm",
        n_neighbors: int | None = None,
        divisor: float = 1.0,
    ) -> Scores:
        """Score the patches of images and the images themselves, as :meth:`MemoryBank.score`.

        Args:
            patches: (B, P, D) patch features of B images.
            reweight: Rule of the image score.
            n_neighbors: Number of bank vectors around the nearest one, itself included.
            divisor: Number that an image's largest patch score is divided by before the rule.

        Raises:
            InputError: As for :meth:`search`.
        """
        return self._bank.score(patches, reweight=reweight, n_neighbors=n_neighbors, divisor=divisor)

    def judge(self, scores: Scores, false_alarm_rate: float | None = None) -> Verdicts:
        """Say which images are bad, as :meth:`MemoryBank.judge`."""
        return self._bank.judge(scores, false_alarm_rate)

    def provenance(self, rows: Tensor | Sequence[int] | None = None) -> list[Origin]:
        """Say where bank vectors came from, as :meth:`MemoryBank.provenance`."""
        return self._bank.provenance(rows)


def checksum_of(file: file_format.BankFile) -> str:
    """Return the checksum of a bank file's vectors, as its header tells it."""
    return file.header.table("tensors").table("vectors").text("checksum")


def cut(size: int, parts: int) -> list[range]:
    """Cut rows into so many ranges, of which none is empty and none a row longer than another.

    Example:
        >>> cut(7, 3), cut(2, 5)
        ([range(0, 2), range(2, 4), range(4, 7)], [range(0, 1), range(1, 2)])
    """
    parts = min(parts, size)
    return [range(number * size // parts, (number + 1) * size // parts) for number in range(parts)]


__all__ = ["ShardedBank", "ShardedIndex"]
