"""Who selects the rows of a bank, and the space that this process selects in, filled a block at a time."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.checks import check_index
from mmad_bank.bank.dumps import FeatureDump
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.reporting import Report
from mmad_bank.bank.standardization import Moments, Standardization
from mmad_bank.errors import InputError


class Selected(NamedTuple):
    """What a selection chose.

    Attributes:
        rows: int64 (n,), rows of the dump in order of selection; where the bank is to search, unless told otherwise.
        vectors: float32 (n, D), those rows as they are in the dump.
        covering_radius: Distance of the farthest row that was not chosen, in the selection space.
        standardization: Mean and standard deviation of the dump, if they were asked for.
    """

    rows: Tensor
    vectors: Tensor
    covering_radius: float
    standardization: Standardization | None = None


class Selector(Protocol):
    """Whoever selects the rows of a bank: this process (:class:`SelectHere`), or others that work for it."""

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
        """Choose ``n_select`` rows, beginning with ``start``, and take mean and standard deviation if asked for."""
        ...

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
        """Choose rows that centers (of the selection space) do not cover, see :func:`mmad_bank.ops.extend_coreset`."""
        ...


class SelectHere:
    """Selects in this process, on ``device`` (default: where the features are)."""

    def __init__(self, device: torch.device | None) -> None:
        self._device = device

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
        """Choose rows from the selection space of the whole dump."""
        moments = Moments() if standardize else None
        space = selection_space(dump, projection, report, n_select=n_select, device=self._device, moments=moments)
        standardization = None if moments is None else moments.result()
        coreset = ops.k_center_greedy(
            space,
            n_select,
            start=start,
            progress=lambda done, total: report("Selecting the coreset", done, total),
            return_radius=True,
            device=self._device,
        )
        rows = coreset.indices
        vectors = space[rows] if projection is None else dump.take(rows)
        return Selected(rows, vectors, coreset.covering_radius, standardization)

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
        """Choose rows from the selection space of the whole dump."""
        space = selection_space(dump, projection, report, n_select=n_select or len(dump), device=self._device)
        coreset = ops.extend_coreset(
            space,
            centers.to(space.device),
            radius=radius,
            n_select=n_select,
            progress=lambda done, total: report("Extending the coreset", done, total),
            device=self._device,
        )
        rows = coreset.indices
        vectors = space[rows] if projection is None or len(rows) == 0 else dump.take(rows)
        return Selected(rows, vectors, coreset.covering_radius)


def coreset_size(n_rows: int, ratio: float, size: int | None) -> int:
    """Return how many of ``n_rows`` rows a bank takes: ``size``, or ``int(n_rows * ratio)`` but at least 1."""
    if size is not None:
        return check_index(size, "size", 1, n_rows, "the number of rows in the features")
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 < ratio <= 1:
        raise InputError(f"ratio: expected more than 0 and at most 1, such as 0.1 for 10%, found {ratio!r}")
    return max(1, int(n_rows * ratio))


def selection_space(
    dump: FeatureDump,
    projection: SparseProjection | None,
    report: Report,
    *,
    n_select: int,
    device: torch.device | None = None,
    moments: Moments | None = None,
) -> Tensor:
    """Return the dump's rows, projected if there is a projection: (N, d) float32, checked for NaN and infinity.

    They are on ``device`` (default: where the dump's are) if the selection of ``n_select`` of them fits there;
    otherwise in host memory. Besides the result, no more than one block of the dump is in memory at a time; an array
    that is in memory already is not copied.
    """
    dim = dump.dim if projection is None else projection.dim_out
    home = device if device is None or ops.selection_fits(len(dump), dim, n_select, device) else torch.device("cpu")
    one_array = projection is None and len(dump.parts) == 1 and dump.parts[0].resident
    whole = dump.parts[0].read(0, len(dump)) if one_array else None
    in_place = whole is not None and home in (None, whole.device)
    space = whole if in_place else None
    for first, rows in dump.blocks():
        block = rows if device is None else rows.to(device)
        if moments is not None:
            moments.update(block)
        if not in_place:
            if projection is not None:
                block = projection(block)
            if space is None:
                place = block.device if home is None else home
                space = torch.empty(len(dump), dim, dtype=torch.float32, device=place)
            space[first : first + len(block)] = block
        report("Reading features", first + len(block), len(dump))
    assert space is not None  # a dump has at least one row
    return space


def left_out(dump: FeatureDump, selected: Tensor, n: int = 256, least: int = 16) -> Tensor | None:
    """Return a few rows of a dump that were not selected; None if there are hardly any."""
    drawn = torch.randint(len(dump), (8 * n,), generator=torch.Generator().manual_seed(0)).unique()
    others = drawn[~torch.isin(drawn, selected)]
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:n]]
    return dump.take(others) if len(others) >= least else None


def check_radius(radius: float) -> float:
    """Return a finite radius of at least 0, or say what is wrong with it."""
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 <= radius < math.inf:
        raise InputError(f"radius: expected a finite number of at least 0, found {radius!r}")
    return float(radius)
