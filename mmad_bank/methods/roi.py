"""Patches inside a region of interest: the others are not in the bank, not scored, and never flagged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from mmad_bank.data.dataset import SampleDataset
from mmad_bank.data.frame import Frame
from mmad_bank.data.roi import RegionOfInterest
from mmad_bank.data.sample import Sample
from mmad_bank.data.sequences import Chosen, Joined, Samples
from mmad_bank.errors import InputError
from mmad_bank.methods.padding import Window, window_of


class Taker(Protocol):
    """What is asked of a method here."""

    name: ClassVar[str]

    @property
    def takes_roi(self) -> bool:
        """Whether it can leave out what lies outside a region of interest."""


def region_of(samples: Samples, method: Taker) -> RegionOfInterest | None:
    """Return the region of interest of a method's training samples: their data set's; None where there is none.

    Raises:
        InputError: Several data sets have several, or the method does not take one.
    """
    region = _region_of(samples)
    if region is not None and not method.takes_roi:
        raise InputError(f"roi: expected none for {method.name}, which scores whole pictures, found one")
    return region


def _region_of(samples: Samples) -> RegionOfInterest | None:
    if isinstance(samples, Joined):
        found = [_region_of(part) for part in samples.parts]
        texts = {None if one is None else str(one.as_json()) for one in found}
        if len(texts) > 1:
            raise InputError("roi: expected one region of interest for all data sets, found several")
        return found[0] if found else None
    if isinstance(samples, Chosen):
        return _region_of(samples.whole)
    return samples.roi if isinstance(samples, SampleDataset) else None


def check_region(region: RegionOfInterest | None, sample: Sample) -> None:
    """Refuse a prepared sample of which nothing lies inside, or whose picture's size nobody knows.

    Raises:
        InputError: It is one.
    """
    if region is None:
        return
    name = sample.rgb_path or sample.xyz_path or sample.id or "sample"
    if sample.frame is None:
        expected = "expected a picture whose size is known, for the region of interest"
        raise InputError(f"{name}: {expected}, found one that an older version has prepared")
    try:
        region.cells(sample.frame, (sample.frame.size, sample.frame.size))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def shown_of(frame: Frame | None, grid: tuple[int, int], region: RegionOfInterest | None) -> Window | Tensor:
    """Return the patches of a grid that count: the picture's window, or, in a region, a mask (h, w) of them."""
    if region is None or frame is None:
        return window_of(frame, grid)
    return region.cells(frame, grid)


def rows_inside(
    region: RegionOfInterest | None, frames: Sequence[Frame | None], grid: tuple[int, int]
) -> Tensor | None:
    """Return the numbers of those rows of a table of images' patches (images × h·w) that lie inside; None for all."""
    if region is None:
        return None
    cells = [torch.ones(grid, dtype=torch.bool) if one is None else region.cells(one, grid) for one in frames]
    return torch.stack(cells).flatten().nonzero().flatten()


def table_inside(table: np.ndarray, rows: Tensor | None) -> np.ndarray:
    """Return those rows of a table (images, patches, D), as (rows, D); all of it for None."""
    return table if rows is None else table.reshape(-1, table.shape[-1])[rows.numpy()]


def outside_unflagged(values: Tensor, inside: Tensor | None) -> Tensor:
    """Return a map (H, W) whose pixels outside are 0, or the lowest of those inside where that is lower still.

    Distances are never negative; learned decisions may be.

    Example:
        >>> outside_unflagged(torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]]))
        tensor([[3., 0.]])
    """
    if inside is None:
        return values
    return torch.where(inside, values, values[inside].min().clamp(max=0))


def square_inside(region: RegionOfInterest | None, frame: Frame | None) -> Tensor | None:
    """Say which pixels of the prepared square lie inside, (S, S) bool; None where all count."""
    return None if region is None or frame is None else region.cells(frame, (frame.size, frame.size))
