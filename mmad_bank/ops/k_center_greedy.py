"""Exact greedy k-center selection (farthest-first traversal)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from mmad_bank import _core
from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import ArrayLike, as_features, check_finite, check_index, naming_bad_rows
from mmad_bank._internal.progress import progress_bar
from mmad_bank.errors import InputError
from mmad_bank.ops._dispatch import cuda_kernels, place_of, thread_count
from mmad_bank.ops._torch import k_center_greedy as _torch

Progress = bool | Callable[[int, int], None]


class Coreset(NamedTuple):
    """A greedy selection and what it covers.

    Attributes:
        indices: int64 (n,), rows in order of selection.
        radii: float32 (n,), the distance of each pick to its nearest earlier centre when it was picked; infinity for
            the first of all. They fall (never rise), and radii[i] is the covering radius of the i picks before it.
        covering_radius: Distance of the farthest row that was not picked to its nearest centre.
    """

    indices: Tensor
    radii: Tensor
    covering_radius: float


@overload
def k_center_greedy(
    features: ArrayLike,
    n_select: int,
    *,
    start: int = 0,
    progress: Progress = False,
    return_radius: Literal[False] = ...,
    device: torch.device | str | None = ...,
) -> Tensor: ...
@overload
def k_center_greedy(
    features: ArrayLike,
    n_select: int,
    *,
    start: int = 0,
    progress: Progress = False,
    return_radius: Literal[True],
    device: torch.device | str | None = ...,
) -> Coreset: ...
def k_center_greedy(
    features: ArrayLike,
    n_select: int,
    *,
    start: int = 0,
    progress: Progress = False,
    return_radius: bool = False,
    device: torch.device | str | None = None,
) -> Tensor | Coreset:
    """Choose rows one by one, each the farthest from those chosen before (Gonzalez 1985; PatchCore, Roth 2022, alg. 1).

    The result is the textbook loop's with float64 distances, whatever the device, the threads and the instruction
    sets: ties go to the lowest row, and no row comes twice.

    Args:
        features: (N, D) float16, bfloat16 or float32 rows, finite.
        n_select: Number of rows to choose, 1 to N.
        start: Row that is selected first.
        progress: True for a bar on the terminal, or a function called with (rows chosen, ``n_select``).
        return_radius: Whether to return a :class:`Coreset` instead of the indices alone.
        device: Where to select; default: where the features are. Features in host memory may be larger than a CUDA
            device's memory: it keeps as much of a 16-bit copy as fits, has the rest streamed from page-locked memory
            while it computes, and fetches the few rows that it needs in full. Beside that copy it needs about 170 bytes
            per row, and twice the bytes of a vector for every row chosen.

    Returns:
        int64 (n_select,) on the features' device, in order of selection.

    Raises:
        InputError: Not a 2-D floating-point array, a row that is not finite, ``n_select`` or ``start`` out of range; a
            device that cannot be used, or that is too small.

    Example:
        >>> import torch
        >>> k_center_greedy(torch.tensor([[0.0], [1.0], [9.0], [4.0]]), 3)
        tensor([0, 2, 3])
    """
    rows = as_features(features)
    check_index(n_select, "n_select", 1, len(rows), "the number of rows")
    check_index(start, "start", 0, len(rows) - 1, "the row numbers")
    coreset = _select(rows, None, n_select, start, -1.0, progress, place_of(rows, device))
    return coreset if return_radius else coreset.indices


def extend_coreset(
    features: ArrayLike,
    bank: ArrayLike,
    *,
    radius: float | None = None,
    n_select: int | None = None,
    progress: Progress = False,
    device: torch.device | str | None = None,
) -> Coreset:
    """Continue a greedy selection: choose rows of ``features`` that the vectors of ``bank`` do not cover.

    Stops when every row lies within ``radius`` of a centre, or after ``n_select`` rows, whichever comes first. With
    neither, all rows are taken that are not copies of a centre.

    Args:
        features: (N, D) rows to choose from.
        bank: (M, D) earlier centres.
        radius: Distance within which a row counts as covered; 0 takes all but copies.
        n_select: Largest number of rows to choose, 0 to N.
        progress: As in :func:`k_center_greedy`.
        device: As in :func:`k_center_greedy`.

    Returns:
        A :class:`Coreset` of the chosen rows; it may be empty.

    Example:
        >>> import torch
        >>> extend_coreset(torch.tensor([[0.1], [5.0], [5.2]]), torch.tensor([[0.0]]), radius=1.0).indices
        tensor([2])
    """
    rows, centers = as_features(features), as_features(bank, "bank")
    if rows.shape[1] != centers.shape[1]:
        raise InputError(f"features: expected {centers.shape[1]} columns as in the bank, found {rows.shape[1]}")
    if rows.device != centers.device:
        raise InputError(f"features: expected a tensor on {centers.device} as the bank is, found {rows.device}")
    if radius is not None and not radius >= 0.0:
        raise InputError(f"radius: expected a distance of at least 0, found {radius}")
    count = len(rows) if n_select is None else check_index(n_select, "n_select", 0, len(rows), "the number of rows")
    limit = 0.0 if radius is None else radius
    return _select(rows, centers, count, 0, limit, progress, place_of(rows, device))


def _select(
    rows: Tensor,
    centers: Tensor | None,
    n_select: int,
    start: int,
    radius: float,
    progress: Progress,
    device: torch.device,
) -> Coreset:
    with _reporter(progress, n_select) as report:
        if device.type != "cpu":
            return _select_on(device, rows, centers, n_select, start, radius, report)
        earlier = rows[:0] if centers is None else centers
        if centers is not None:
            check_finite(centers, "bank")
        with naming_bad_rows("features"):
            chosen, distances, covering = _core.k_center_greedy(
                array_of(rows), array_of(earlier), n_select, start, radius, 0, "auto", thread_count(), report
            )
    return Coreset(torch.from_numpy(chosen), torch.from_numpy(distances).float(), covering)


def _select_on(
    device: torch.device,
    rows: Tensor,
    centers: Tensor | None,
    n_select: int,
    start: int,
    radius: float,
    report: Callable[[int], None] | None,
) -> Coreset:
    """Select on a device that is not the CPU; the results are where the rows are."""
    for name, value in (("features", rows), ("bank", centers)):
        if value is not None:
            check_finite(value, name)
    cuda = cuda_kernels(device)
    if cuda is not None and rows.shape[1] <= cuda.MAX_DIM:
        found = cuda.k_center_greedy(rows, centers, n_select, start, radius, report, device=device)
    else:
        moved = None if centers is None else centers.to(device)
        found = _torch.select(rows.to(device), moved, n_select, start, radius, report)
    indices, radii, covering = found
    return Coreset(indices.to(rows.device), radii.to(rows.device), covering)


@contextmanager
def _reporter(progress: Progress, total: int) -> Iterator[Callable[[int], None] | None]:
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress:
        with progress_bar("Selecting the coreset", total) as advance:
            yield advance
    else:
        yield None
