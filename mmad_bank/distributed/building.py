"""Banks built over workers: the same bank as :meth:`MemoryBank.build` makes in one process, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import check_index
from mmad_bank.bank import FeatureDump, MemoryBank
from mmad_bank.bank.memory_bank import Features
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.reporting import Report
from mmad_bank.bank.selection import Selected
from mmad_bank.bank.standardization import Moments, first_shift
from mmad_bank.distributed.cluster import connect
from mmad_bank.distributed.crew import RayCrew
from mmad_bank.distributed.selection import Picks, Selection, Traffic
from mmad_bank.distributed.shares import Cut
from mmad_bank.distributed.workers import Folder, Memory
from mmad_bank.errors import InputError

_PROCESSORS = {"cpu": ("CPU",), "cuda": ("CPU", "GPU")}  # what a worker takes one of, in Ray's words


class Work(NamedTuple):
    """What a selection over workers took.

    Attributes:
        workers: Number of workers.
        replaced: How many of them died and were made anew.
        traffic: What went between them and this process in all.
        selection: What the selection alone moved, without progress of reading and the bank's vectors.
        formula: What it should move, see :class:`~mmad_bank.distributed.selection.Tally`.
        memory: Each worker's memory at the end.
        at_start: Each worker's memory before it held anything.
    """

    workers: int
    replaced: int
    traffic: Traffic
    selection: Traffic
    formula: Traffic
    memory: list[Memory]
    at_start: list[Memory]


class Workers:
    """Workers of a Ray cluster that select the rows of banks: the ``selector`` of :meth:`MemoryBank.build`.

    Make one with :func:`selecting_over`. Each worker reads its share of the files itself, so these must lie where all
    of them can read them under the same path; features in memory are sent to them once.

    Args:
        ray: The module, which has joined a cluster.
        count: Number of workers, at most: a dump of fewer blocks gets as many.
        scratch: Folder on the workers' machines for rows that do not fit into memory.
        device: Where the rows of each meet the centres, ``"cpu"`` or ``"cuda"``.

    Attributes:
        work: What the last selection took; None before it.
    """

    work: Work | None = None

    def __init__(self, ray: Any, count: int, scratch: Folder | None = None, device: str = "cpu") -> None:
        self._ray, self._count, self._scratch, self._device = ray, count, scratch, device

    def select(
        self,
        dump: FeatureDump,
        n_select: int,
        *,
        start: int,
        projection: SparseProjection | None,
        standardize: bool,
        report: Report,
    ) -> Selected:
        """Choose rows, see :class:`mmad_bank.bank.selection.Selector`."""
        cut, moments = self._cut(dump), Moments() if standardize else None
        if moments is not None:
            moments.shift = first_shift(dump.read(*cut.ranges[0]))
        with self._crew(cut, projection, moments) as crew:
            selection = Selection(crew, cut, report, on_disk=self._scratch is not None)
            at_start = selection.start()
            selection.read(moments)
            standardization = None if moments is None else moments.result()
            picks = selection.run(n_select, start=start)
            dim = dump.dim if projection is None else projection.dim_out
            vectors = self._finish(crew, selection, picks, dim, at_start)
        return Selected(torch.from_numpy(picks.rows), vectors, picks.covering_radius, standardization)

    def extend(
        self,
        dump: FeatureDump,
        centers: Tensor,
        *,
        radius: float | None,
        n_select: int | None,
        projection: SparseProjection | None,
        report: Report,
    ) -> Selected:
        """Choose rows that centers do not cover, see :class:`mmad_bank.bank.selection.Selector`."""
        cut = self._cut(dump)
        with self._crew(cut, projection, None) as crew:
            selection = Selection(crew, cut, report, on_disk=self._scratch is not None)
            at_start = selection.start()
            selection.read()
            picks = selection.run(
                len(dump) if n_select is None else n_select,
                earlier=array_of(centers.cpu().contiguous()),
                radius=0.0 if radius is None else radius,
                stage="Extending the coreset",
            )
            vectors = self._finish(crew, selection, picks, centers.shape[1], at_start)
        return Selected(torch.from_numpy(picks.rows), vectors, picks.covering_radius)

    def close(self) -> None:
        """Let go of the cluster; nothing can be selected any more."""
        self._ray = None

    def _cut(self, dump: FeatureDump) -> Cut:
        """Cut a dump for as many workers as get a block of it."""
        if self._ray is None:
            raise InputError(
                "selector: expected one that is used inside its `with selecting_over(...)`, found it closed"
            )
        return Cut(dump, min(self._count, sum(1 for _ in dump.ranges())))

    def _crew(self, cut: Cut, projection: SparseProjection | None, moments: Moments | None) -> RayCrew:
        shift = None if moments is None else moments.shift
        return RayCrew(self._ray, cut.shares(), (projection, shift, self._scratch), device=self._device)

    def _finish(self, crew: RayCrew, selection: Selection, picks: Picks, dim: int, at_start: list[Memory]) -> Tensor:
        """Gather the vectors, and keep what the work took."""
        vectors = selection.take(picks.rows) if len(picks.rows) else torch.empty(0, dim)
        memory = selection.memory()
        formula = selection.tally.traffic(len(memory), dim)
        self.work = Work(len(memory), crew.replaced, crew.traffic, selection.moved, formula, memory, at_start)
        return vectors


@contextmanager
def selecting_over(
    workers: int | None = None,
    *,
    address: str | None = None,
    scratch: Folder | None = None,
    worker_device: str = "cpu",
) -> Iterator[Workers]:
    """Yield workers that select for banks, on a Ray cluster that is joined for as long.

    Args:
        workers: Number of workers, each of which takes one CPU, and one GPU with ``worker_device="cuda"``; default: all
            that the cluster has.
        address: Address of the cluster, see :func:`mmad_bank.distributed.cluster.connect`; default: this machine.
        scratch: Folder on the workers' machines where each keeps its rows in a file instead of in memory. The files
            have no names, and are gone with the workers. A relative path is one from this program's folder.
        worker_device: Where the rows of a worker meet the centres: ``"cpu"``, or ``"cuda"`` for a GPU of its own. The
            rows are in its machine's memory as well.

    Raises:
        InputError: No cluster answers, or it has fewer CPUs or GPUs than workers are asked for; another device, or a
            scratch folder for GPUs.
        MissingExtraError: Ray is not installed.
    """
    if worker_device not in _PROCESSORS:
        raise InputError(f"worker_device: expected cpu or cuda, of which each takes one, found {worker_device!r}")
    if scratch is not None and not os.fspath(scratch):
        raise InputError("scratch: expected a folder, found an empty path")
    if scratch is not None and worker_device != "cpu":
        raise InputError(f"scratch: expected workers on CPUs, found {worker_device}")
    with connect(address, workers) as ray:
        resources = ray.cluster_resources()
        room, name = min((int(resources.get(name, 0)), name) for name in _PROCESSORS[worker_device])
        count = max(1, room) if workers is None else check_index(workers, "workers", 1, 10_000, "processes")
        if count > room:
            raise InputError(f"workers: expected at most {room}, the {name}s of the Ray cluster, found {count}")
        made = Workers(ray, count, scratch, worker_device)
        try:
            yield made
        finally:
            made.close()


def build(
    features: Features,
    ratio: float = 0.1,
    *,
    workers: int | None = None,
    address: str | None = None,
    scratch: Folder | None = None,
    worker_device: str = "cpu",
    **arguments: Any,
) -> MemoryBank:
    """Select a bank as :meth:`MemoryBank.build` does, over workers of a Ray cluster: the same bank, byte for byte.

    A worker holds its share of the selection space (N x d float32 in all, or in files with ``scratch``), its rounded
    copy of it (16 bits per value at most), and the centres. This process holds the bank and no rows.

    Args:
        features: As for :meth:`MemoryBank.build`. Paths are opened by the workers.
        ratio: As there.
        workers: Number of workers, see :func:`selecting_over`.
        address: Address of the cluster, see there.
        scratch: Folder for rows that do not fit into the workers' memory, see there.
        worker_device: ``"cpu"``, or ``"cuda"`` for a GPU for each worker, see there.
        arguments: All other arguments of :meth:`MemoryBank.build`.

    Raises:
        InputError: As for :meth:`MemoryBank.build` and :func:`selecting_over`.
        WorkersError: A worker died again and again.

    Example:
        >>> import torch
        >>> bank = build(torch.rand(1000, 16), workers=2)  # doctest: +SKIP
        >>> len(bank)  # doctest: +SKIP
        100
    """
    with selecting_over(workers, address=address, scratch=scratch, worker_device=worker_device) as selector:
        return MemoryBank.build(features, ratio, selector=selector, **arguments)
