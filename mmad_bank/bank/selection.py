"""The space in which a coreset is selected, filled from a dump a block at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.checks import check_index
from mmad_bank.bank.dumps import FeatureDump
from mmad_bank.bank.projection import SparseProjection
from mmad_bank.bank.reporting import Report
from mmad_bank.errors import InputError


class Standardization(NamedTuple):
    """One scalar mean and standard deviation for all values of a bank, as M3DM takes them."""

    mean: float
    std: float


def check_standardization(pair: Any) -> Standardization:
    """Return (mean, std) that distances can be divided by, or say what is wrong with it."""
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(isinstance(v, (int, float)) for v in pair):
        raise InputError(f"standardize: expected True, False or (mean, std), found {pair!r}")
    mean, std = pair
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InputError(f"standardize: expected a finite mean and a std above 0, found {pair!r}")
    return Standardization(float(mean), float(std))


class Moments:
    """Mean and sample standard deviation of a stream of values, in float64 about the first block's mean."""

    def __init__(self) -> None:
        self._count = 0
        self._shift = self._sum = self._squares = 0.0

    def update(self, block: Tensor) -> None:
        """Take in all values of a block."""
        if not self._count:
            self._shift = float(block.mean(dtype=torch.float64).float())
        shifted = block - self._shift
        self._count += block.numel()
        self._sum += float(shifted.sum(dtype=torch.float64))
        self._squares += float(shifted.square_().sum(dtype=torch.float64))

    @classmethod
    def of(cls, count: int, shift: float, total: float, squares: float) -> Moments:
        """Return what :meth:`state` told."""
        made = cls()
        made._count, made._shift, made._sum, made._squares = count, shift, total, squares
        return made

    def state(self) -> tuple[int, float, float, float]:
        """Return the number of values, the shift, and the sums of the shifted values and of their squares."""
        return self._count, self._shift, self._sum, self._squares

    def result(self) -> Standardization:
        """Return mean and standard deviation (n - 1 in the denominator)."""
        mean = self._sum / self._count
        variance = (self._squares - self._count * mean**2) / max(self._count - 1, 1)
        if variance <= 0:
            raise InputError("standardize: expected features that vary, found one value throughout")
        return Standardization(self._shift + mean, math.sqrt(variance))


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
