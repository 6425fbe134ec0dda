"""Exact greedy k-center selection of rows that lie on several machines or devices: a shard, and the coordinator.

Of the rows outside a block's pool, the selection needs one number: the largest value among them. So rows may be cut
into any number of shards, and the picks are those of :func:`~mmad_bank.ops.k_center_greedy` of all rows in one array.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import check_finite, check_index, naming_bad_rows
from mmad_bank.errors import InputError
from mmad_bank.ops._dispatch import cuda_kernels, place_of, thread_count
from mmad_bank.ops._torch.k_center_shards import TorchShard

IN_MEMORY: Mapping[str, Any] = {}
ON_DISK: Mapping[str, Any] = {"pool": 8192, "sinking": 0.0}
"""Settings of a coordinator whose shards' rows are in memory, or on a disk, from which a rise reads most of them."""
_COMPARED = 4096  # bytes at either end of a file
PICKED = -1.0
"""Value of a row that was picked: below every distance."""


class Candidates(NamedTuple):
    """What a shard offers for the pool.

    Attributes:
        squared: float64 (m,), squared distances of rows to their nearest centre.
        rows: int64 (m,), their numbers.
        above: Number of all rows at the bar or above it.
        below: At least the largest value under the bar, and itself under it; 0.0 if there is none.
    """

    squared: Tensor
    rows: Tensor
    above: int
    below: float

    def numbered(self, rows: Tensor) -> Candidates:
        """Return them with other row numbers, such as those in all shards."""
        return self._replace(rows=rows)


class KCenterShard:
    """Some of the rows of a selection, with what they have met.

    A row's value is its squared distance to the nearest centre that it has met, at most: a row meets the newest centres
    when it may be among the farthest, and most rows never are.

    Args:
        features: (N, D) float32 rows, contiguous and finite; viewed, not copied, so they must not change. N may be 0.
            In host memory they may be a mapped file.
        n_centers: Number of centres that it will meet in all, at most.
        threads: Number of threads on the CPU; default: PyTorch's.
        scratch: On the CPU, folder for the copy of the rows that is screened, of at most 16 bits per value: for more
            rows than memory holds. It is a file without a name, mapped, and gone with the shard. Beside it a shard
            holds about 40 bytes per row (64 if rows are long enough for a coarse copy, 192 values), the centres, and
            64 MiB of rows that it has read. Default: in memory.
        file: With ``scratch``, descriptor of the file that the features are a private mapping of, from its first byte
            on. It may be closed then. Rows are read from it past the system's cache, which is several times faster
            where memory holds a part of the file only. Default: unknown.
        device: Where the shard works; default: where the features are. Shards of one selection may be on any devices:
            the answers are the same to the last bit. A CUDA device takes features in host memory too, as in
            :func:`~mmad_bank.ops.k_center_greedy`, and a mapped file as a copy in memory. Beside the rows and their
            16-bit copy it needs about 170 bytes per row and 6 per value of a centre. Everything runs on the stream that
            is the current one here, and only :meth:`rise` waits for it: shards on several devices work at a time if all
            meet, then all settle, and each rises in a thread of its own. Where the core has no kernels for a device,
            PyTorch does the work there, without any screening.

    Raises:
        InputError: Rows of another kind, or a row that is not finite; a scratch folder that cannot hold the copy; a
            file of other bytes; a device that cannot be used, or that is too small.

    Example:
        >>> import torch
        >>> shard = KCenterShard(torch.tensor([[0.0], [3.0], [5.0]]), n_centers=2)
        >>> shard.meet(torch.tensor([[0.0]]), own=torch.tensor([0]))
        >>> shard.rise(4.0, at_most=1)
        Candidates(squared=tensor([25.], dtype=torch.float64), rows=tensor([2]), above=2, below=0.0)
    """

    def __init__(
        self,
        features: Tensor,
        *,
        n_centers: int,
        threads: int | None = None,
        scratch: str | os.PathLike[str] | None = None,
        file: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if features.ndim != 2 or features.dtype != torch.float32 or not features.is_contiguous():
            raise InputError(
                f"features: expected contiguous float32 rows (N, D), found {features.dtype} {tuple(features.shape)}"
            )
        self._features, self._room, self._met = features, max(1, n_centers), 0
        place = place_of(features, device)
        if place.type == "cpu":
            self._kernel = _on_cpu(features, n_centers, threads, scratch, -1 if file is None else file)
        else:
            self._kernel = _on_device(features, n_centers, place)

    def __len__(self) -> int:
        return len(self._features)

    def meet(self, centers: Tensor, own: Tensor | None = None) -> None:
        """Take in the newest centres.

        Args:
            centers: (C, D) float32, in the order of selection.
            own: int64 (C,), the row of this shard that each centre is, or -1; default: none is. Such rows are picked:
                they are no candidates any more.

        Raises:
            InputError: A centre that is not finite, centres of another length, or more than ``n_centers`` in all; a
                row that the shard does not have.
        """
        centers = centers.detach().cpu().float().contiguous()
        if centers.ndim != 2 or centers.shape[1] != self._features.shape[1]:
            raise InputError(
                f"centers: expected {self._features.shape[1]} columns as in the features, found {tuple(centers.shape)}"
            )
        check_finite(centers, "centers")
        numbers = torch.full((len(centers),), -1) if own is None else _as_rows(own, "own")
        if len(numbers) != len(centers):
            raise InputError(f"own: expected one row for each of {len(centers)} centers, found {len(numbers)}")
        _check_rows(numbers, "own", -1, len(self))
        if self._met + len(centers) > self._room:
            raise InputError(
                f"centers: expected at most {self._room} in all (n_centers), found {self._met + len(centers)}"
            )
        self._met += len(centers)
        self._kernel.meet(centers, numbers)

    def settle(self, rows: Tensor, squared: Tensor) -> None:
        """Take in what the coordinator knows of this shard's rows of the pool after a block.

        Args:
            rows: int64 (t,), rows that have met every centre by now.
            squared: float64 (t,), their values; :data:`PICKED` for those that were picked.

        Raises:
            InputError: A row that the shard does not have, or without a value.
        """
        numbers, values = _as_rows(rows, "rows"), squared.detach().cpu().double().contiguous()
        if numbers.shape != values.shape:
            raise InputError(f"squared: expected a value for each of {len(numbers)} rows, found {tuple(values.shape)}")
        _check_rows(numbers, "rows", 0, len(self))
        self._kernel.settle(values, numbers)

    def rise(self, bar: float, at_most: int) -> Candidates:
        """Bring all rows whose value is at least ``bar`` up to date.

        Args:
            bar: Squared distance.
            at_most: Number of candidates to return.

        Returns:
            The farthest of the rows that still are at the bar or above; of equal ones the lowest. In any order.
        """
        return Candidates(*self._kernel.rise(bar, at_most))

    @property
    def updates(self) -> int:
        """Number of rows that all rises have brought up to date, each as often as it was; on the CPU only."""
        if not isinstance(self._kernel, _CpuShard):
            raise InputError(f"updates: expected a shard on the CPU, found {type(self._kernel).__name__}")
        return self._kernel.updates


class _Kernel(Protocol):
    """A shard where it is; all arguments have been checked, and all tensors are in host memory."""

    def meet(self, centers: Tensor, own: Tensor) -> None: ...
    def settle(self, squared: Tensor, rows: Tensor) -> None: ...
    def rise(self, bar: float, at_most: int) -> tuple[Tensor, Tensor, int, float]: ...


class _CpuShard:
    """A shard of the core, which takes arrays."""

    def __init__(self, features: Tensor, n_centers: int, threads: int, scratch: str, file: int) -> None:
        self._native = _core.KCenterShard(array_of(features), n_centers, "auto", threads, scratch, file)

    def meet(self, centers: Tensor, own: Tensor) -> None:
        with naming_bad_rows("centers"):
            self._native.meet(array_of(centers), array_of(own))

    def settle(self, squared: Tensor, rows: Tensor) -> None:
        self._native.settle(array_of(squared), array_of(rows))

    @property
    def updates(self) -> int:
        return self._native.updates

    def rise(self, bar: float, at_most: int) -> tuple[Tensor, Tensor, int, float]:
        squared, rows, above, below = self._native.rise(bar, at_most)
        return torch.from_numpy(squared), torch.from_numpy(rows), above, below


def _on_cpu(
    features: Tensor, n_centers: int, threads: int | None, scratch: str | os.PathLike[str] | None, file: int
) -> _Kernel:
    folder = "" if scratch is None else os.fspath(scratch)
    if file >= 0:
        _check_file(features, file)
    try:
        with naming_bad_rows("features"):
            return _CpuShard(features, n_centers, _threads(threads), folder, file)
    except OSError as error:
        raise InputError(f"scratch: {error}") from None


def _check_file(features: Tensor, file: int) -> None:
    """Refuse a file that holds something else than the features: rows would be taken from it."""
    memory = array_of(features).reshape(-1).view(np.uint8)
    for first in (0, max(0, memory.nbytes - _COMPARED)):
        here = memory[first : first + _COMPARED].tobytes()
        try:
            there = os.pread(file, len(here), first)
        except OSError as error:
            raise InputError(f"file: cannot be read ({error.strerror})") from error
        if here != there:
            raise InputError(f"file: expected the one that the features are mapped from, found other bytes at {first}")


def _on_device(features: Tensor, n_centers: int, device: torch.device) -> _Kernel:
    if len(features) == 0:  # the device has nothing to do
        return _CpuShard(features.cpu(), n_centers, 1, "", -1)
    check_finite(features, "features")
    cuda = cuda_kernels(device)
    kernel: _Kernel
    if cuda is not None and features.shape[1] <= cuda.MAX_DIM:
        kernel = cuda.CudaShard(features, n_centers, device=device)
    else:
        kernel = TorchShard(features.to(device))
    return kernel


def _as_rows(rows: Tensor, name: str) -> Tensor:
    if rows.dtype != torch.int64 or rows.ndim != 1:
        raise InputError(f"{name}: expected row numbers, int64 (n,), found {rows.dtype} {tuple(rows.shape)}")
    return rows.detach().cpu().contiguous()


def _check_rows(rows: Tensor, name: str, lowest: int, count: int) -> None:
    """Refuse rows that a shard of ``count`` does not have: the core writes where it is told to."""
    if len(rows) and not (lowest <= int(rows.min()) and int(rows.max()) < count):
        raise InputError(
            f"{name}: expected {lowest} to {count - 1} (the rows of the shard), found {int(rows.min())} to "
            f"{int(rows.max())}"
        )


class KCenterCoordinator:
    """The decisions of a selection over shards. It holds no rows but those of a pool.

    Whoever owns the shards runs this loop, see :func:`mmad_bank.distributed.selection.select` for one that does::

        while True:
            while True:
                for each shard: coordinator.offer(shard.rise(coordinator.bar, coordinator.wanted), numbered in all)
                if coordinator.join(): break
            if coordinator.covering_radius is not None: break
            made = coordinator.pick(rows of coordinator.pool)
            if coordinator.covering_radius is not None: break
            for each shard: meet(the newest picks), settle(its rows of coordinator.pool, their coordinator.values)

    Args:
        n_rows: Number of rows in all shards.
        n_select: Largest number of rows to pick.
        n_earlier: Number of earlier centres that the selection continues from; the shards meet them first.
        start: Without earlier centres, the row that is picked first; the shards meet it first.
        radius: Distance within which a row counts as covered: the selection ends when all do. Negative: it does not.
        pool: Largest number of rows in a pool; 0 chooses. The picks do not depend on it.
        sinking: First step of the bar, in squared distances, where too few rows are left above it; each further step is
            the square of the one before. 0 takes steps by how the values above the bar thin out, and asks the shards
            less often for more, which pays where they read rows from a disk. The picks do not depend on it.
        threads: Number of threads; default: PyTorch's.

    Example:
        >>> import torch
        >>> features = torch.tensor([[0.0], [1.0], [9.0], [4.0]])
        >>> shard, coordinator = KCenterShard(features, n_centers=3), KCenterCoordinator(4, 3)
        >>> shard.meet(features[:1], own=torch.tensor([0]))
        >>> while coordinator.covering_radius is None:
        ...     coordinator.offer(shard.rise(coordinator.bar, coordinator.wanted))
        ...     if coordinator.join() and coordinator.covering_radius is None:
        ...         picks = coordinator.rows[-coordinator.pick(features[coordinator.pool]):]
        ...         shard.meet(features[picks], own=picks)
        ...         shard.settle(coordinator.pool, coordinator.values)
        >>> coordinator.rows, coordinator.covering_radius
        (tensor([0, 2, 3]), 1.0)
    """

    def __init__(
        self,
        n_rows: int,
        n_select: int,
        *,
        n_earlier: int = 0,
        start: int = 0,
        radius: float = -1.0,
        pool: int = 0,
        sinking: float = 0.93,
        threads: int | None = None,
    ) -> None:
        check_index(n_select, "n_select", 0 if n_earlier else 1, n_rows, "the number of rows")
        check_index(start, "start", 0, n_rows - 1, "the row numbers")
        self._native = _core.KCenterCoordinator(
            n_rows, n_earlier, n_select, start, radius, pool, sinking, "auto", _threads(threads)
        )

    @property
    def bar(self) -> float:
        """Value that the shards have to rise to."""
        return self._native.bar

    @property
    def wanted(self) -> int:
        """Number of candidates of a shard that are of use."""
        return self._native.wanted

    def offer(self, candidates: Candidates) -> None:
        """Take a shard's candidates, with rows numbered in all shards."""
        squared, rows = array_of(candidates.squared), array_of(candidates.rows)
        self._native.offer(squared, rows, candidates.above, candidates.below)

    def join(self) -> bool:
        """Make a pool of the offers of all shards; False if the bar has changed, and all shards have to rise again."""
        return self._native.join()

    @property
    def pool(self) -> Tensor:
        """int64 (t,), rows of the pool, ascending."""
        return torch.from_numpy(self._native.pool()[1])

    @property
    def values(self) -> Tensor:
        """float64 (t,), squared distances of the pool's rows to the nearest centre; :data:`PICKED` for picks."""
        return torch.from_numpy(self._native.pool()[0])

    def pick(self, features: Tensor) -> int:
        """Make a block of picks in the pool, and return their number.

        Args:
            features: (t, D) float32, the rows of :attr:`pool`, on any device.

        Raises:
            InputError: A row that is too long for its squared distances.
        """
        with naming_bad_rows("features"):
            return self._native.pick(np.ascontiguousarray(array_of(features.cpu())))

    @property
    def complete(self) -> bool:
        """Whether no more picks will be made."""
        return self._native.complete

    @property
    def rows(self) -> Tensor:
        """int64 (n,), all picks so far, in order."""
        return torch.from_numpy(self._native.picks(0)[0])

    def rows_from(self, first: int) -> Tensor:
        """int64 (n - first,), the picks from number ``first`` on."""
        return torch.from_numpy(self._native.picks(first)[0])

    @property
    def radii(self) -> Tensor:
        """float64 (n,), distance of each pick to its nearest centre before it; infinity for the first of all."""
        return torch.from_numpy(self._native.picks(0)[1])

    @property
    def covering_radius(self) -> float | None:
        """Distance of the farthest row that was not picked to its nearest centre; None until it is known."""
        return self._native.covering_radius if self._native.covered else None


def _threads(threads: int | None) -> int:
    return thread_count() if threads is None else check_index(threads, "threads", 1, 1 << 16, "as many as are of use")
