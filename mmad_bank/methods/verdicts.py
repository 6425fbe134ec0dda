"""Verdicts of predictions: calibrations of a model's scores and maps, and the regions of a map that are bad."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.json_values import inside, number_in, table_in
from mmad_bank.calibration import Calibration
from mmad_bank.errors import InputError
from mmad_bank.methods.parts import IMAGES, PARTS, HeldOutParts, PartViews

FUSED = "fused"
"""The name of a method's own result, beside those of its parts."""
Verdict = Literal["good", "bad"]
GOOD: Verdict = "good"
BAD: Verdict = "bad"
PIXEL_RATES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)
"""Shares of the held-out images' pixels whose scores are kept."""
_AT_MOST = 2_000_000  # pixels that quantiles are taken of


class Extent(NamedTuple):
    """How far a region reaches from its peak.

    Attributes:
        share: A region's pixels are above the score that this share of normal pixels exceeds; None for those above the
            threshold of peaks alone.
        height: They are also above this part of the way from the usual normal pixel, the median, to the peak.
    """

    share: float | None
    height: float


EXTENT = Extent(0.001, 0.5)
"""Extent of the regions of predictions, chosen by ``benchmarks/methods.py regions``."""


@dataclass(frozen=True)
class Region:
    """Connected pixels of a map around a peak that no normal image has.

    Attributes:
        box: Pixels of the picture: (top, left, bottom, right), the last two not included.
        area: Number of its pixels.
        peak: Its highest score.
        place: (row, column) of that pixel.
        p_value: Conformal p-value of the peak among the peaks of held-out normal maps.
        area_mm2: Area of the part's surface in mm², as far as its points were measured; None without a point cloud.
        extent_mm: Extents of its points along x, y and z in mm; None without a point cloud.
    """

    box: tuple[int, int, int, int]
    area: int
    peak: float
    place: tuple[int, int]
    p_value: float
    area_mm2: float | None = None
    extent_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class ModelCalibration:
    """Calibrations of a model's image scores, and of its map.

    Attributes:
        images: Calibration of the image scores by result: ``"fused"`` is the method's own, parts follow.
        peaks: Calibration of the largest score of a map.
        pixels: Scores that shares of the held-out images' pixels exceed, by :data:`PIXEL_RATES`.
        views: What is known of the views of parts, where several pictures show one part: scores and peaks are the
            largest of a part's then. None where each picture counts by itself.
    """

    images: Mapping[str, Calibration]
    peaks: Calibration
    pixels: tuple[float, ...]
    views: PartViews | None = None

    def __len__(self) -> int:
        return len(self.peaks)

    @property
    def own(self) -> Calibration:
        """Calibration of the method's own image scores."""
        return self.images[FUSED]

    @property
    def origin(self) -> str:
        """Words for which images were held out."""
        return self.own.origin

    def pixel_threshold(self, share: float) -> float:
        """Return the score that a share of normal pixels exceeds; between the shares that are kept, by their logarithm.

        Args:
            share: A share of at most 0.5; below 0.0001 it counts as that.
        """
        rates = np.log(PIXEL_RATES)[::-1]
        return float(np.interp(math.log(share), rates, self.pixels[::-1]))

    def regions(
        self, values: Tensor, rate: float | None = None, xyz: Tensor | None = None, counting: Tensor | None = None, *,
        extent: Extent = EXTENT,
    ) -> tuple[Region, ...]:  # fmt: skip
        """Return the regions of a map, the one with the highest peak first.

        A region has a peak above the threshold of peaks: at most a share ``rate`` of normal images has any. It reaches
        as far as scores are above half the height of the peak over the usual normal pixel, and above what one in a
        thousand normal pixels exceeds. Maps are blurred: at a fixed level a defect would be the larger the higher its
        peak is, as half the height of a blurred edge lies at the edge. Two thresholds, as Canny's edges have (1986): a
        low one alone would find something in every image, the high one cuts a defect to its worst pixels.

        Args:
            values: (H, W) map in the picture's pixels.
            rate: False-alarm rate, see :meth:`mmad_bank.calibration.Calibration.threshold`.
            xyz: (3, H, W) organized cloud in metres, zero where nothing was measured.
            counting: (H, W) bool, the pixels that may be in a region: those of a region of interest; None for all.
            extent: How far a region reaches from its peak.
        """
        found = self._pieces(values, rate, counting, extent)
        areas = None if xyz is None or not found else pixel_areas(xyz)
        return tuple(self._region(rows, columns, values, xyz, areas) for rows, columns in found)

    def region_map(
        self, values: Tensor, rate: float | None = None, counting: Tensor | None = None, *, extent: Extent = EXTENT
    ) -> Tensor:
        """Say which pixels belong to which region, (H, W) int32: 1 for the first of :meth:`regions`, 0 for none."""
        numbers = torch.zeros(values.shape, dtype=torch.int32)
        for number, (rows, columns) in enumerate(self._pieces(values, rate, counting, extent), 1):
            numbers[rows, columns] = number
        return numbers

    def _pieces(
        self, values: Tensor, rate: float | None, counting: Tensor | None, extent: Extent
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return rows and columns of the pixels of each region, the one with the highest peak first."""
        peak = self.peaks.threshold(rate).score
        above = peak if extent.share is None else min(self.pixel_threshold(extent.share), peak)
        if counting is not None:
            values = torch.where(counting, values, -math.inf)
        if not bool((values > peak).any()):
            return []
        found = [
            (float(values[rows, columns].max()), rows, columns)
            for rows, columns in self._bounded(values.numpy(), above, peak, extent.height)
        ]
        found = sorted((one for one in found if one[0] > peak), key=lambda one: -one[0])
        return [(rows, columns) for _, rows, columns in found]

    def _bounded(
        self, values: np.ndarray, above: float, peak: float, height: float
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows and columns of what is connected above a score, cut at a part of the height of its peak.

        What joins another peak to that one may lie below the threshold of peaks. The other one has a region of its own
        then, even if the cut is above it: what is connected above that threshold, cut at its own height.
        """
        usual = self.pixels[0]
        for rows, columns in _connected(values > above):
            own = values[rows, columns].astype(np.float64)  # in float32 the level may be rounded up to the peak
            highest = float(own.max())
            level = usual + height * (highest - usual)
            if level <= above or highest <= usual:  # a rate above 0.5 has peaks below the usual pixel: no height there
                yield rows, columns
                continue
            yield from _marked(rows, columns, own > level)
            for own_rows, own_columns in _marked(rows, columns, own > peak) if level > peak else ():
                lower = values[own_rows, own_columns].astype(np.float64)
                if lower.max() <= level:
                    own_level = max(peak, usual + height * (float(lower.max()) - usual))
                    yield from _marked(own_rows, own_columns, lower > own_level)

    def _region(
        self, rows: np.ndarray, columns: np.ndarray, values: Tensor, xyz: Tensor | None, areas: Tensor | None
    ) -> Region:
        scores = values[rows, columns]
        top = int(scores.argmax())
        peak = float(scores[top])
        box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        place, p_value = (int(rows[top]), int(columns[top])), float(self.peaks.p_values(peak))
        if xyz is None or areas is None:
            return Region(box, len(rows), peak, place, p_value)
        points = xyz[:, rows, columns]
        points = points[:, (points != 0).all(0)]
        extents = (points.amax(1) - points.amin(1)).mul(1000).tolist() if points.shape[1] else [0.0, 0.0, 0.0]
        area = float(areas[rows, columns].sum())
        return Region(box, len(rows), peak, place, p_value, area, (extents[0], extents[1], extents[2]))

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values, from which :meth:`from_json` makes the same again."""
        images = {name: one.as_json() for name, one in self.images.items()}
        pixels = {f"{rate:g}": score for rate, score in zip(PIXEL_RATES, self.pixels, strict=True)}
        views = {} if self.views is None else {"views": self.views.as_json()}
        return {"images": images, "peaks": self.peaks.as_json(), "pixels": pixels, **views}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelCalibration:
        """Return what :meth:`as_json` made.

        Raises:
            InputError: It is something else; the message names the field.
        """
        images = {}
        for name, one in table_in(content, "images").items():
            with inside(f"images.{name}"):
                images[name] = Calibration.from_json(one)
        own = table_in(content, "peaks")
        with inside("peaks"):
            peaks = Calibration.from_json(own)
        found = table_in(content, "pixels")
        with inside("pixels"):
            pixels = tuple(number_in(found, f"{rate:g}") for rate in PIXEL_RATES)
        if FUSED not in images or {len(one) for one in images.values()} != {len(peaks)}:
            numbers = ", ".join(f"{len(one)} of {name}" for name, one in images.items()) or "none"
            raise InputError(f"images: expected {len(peaks)} scores of {FUSED} and of each part, found {numbers}")
        if list(pixels) != sorted(pixels):
            raise InputError("pixels: expected scores that rise as the shares fall, found others")
        if "views" not in content:
            return cls(images, peaks, pixels)
        with inside("views"):
            return cls(images, peaks, pixels, PartViews.from_json(content["views"]))


class Observed:
    """What is seen of held-out normal images, one after the other, to make a :class:`ModelCalibration` of it.

    Args:
        origin: Words for which images they are.
        images: About the number of images.
        shown: Which parts they show, in the order in which they are taken; None where each counts by itself.
    """

    def __init__(self, origin: str, images: int, shown: HeldOutParts | None = None) -> None:
        self.origin, self.shown = origin, shown
        self._scores: dict[str, list[float]] = {}
        self._peaks: list[float] = []
        self._pixels: list[Tensor] = []
        self._an_image = max(1, _AT_MOST // max(images, 1))

    def __len__(self) -> int:
        return len(self._peaks)

    def take(self, score: float, parts: Mapping[str, float], shown: Tensor) -> None:
        """Take an image's score, those of its parts, and the picture's part of its map."""
        for name, one in {FUSED: score, **(parts if len(parts) > 1 else {})}.items():
            self._scores.setdefault(name, []).append(one)
        values = shown.detach().cpu().flatten()
        self._peaks.append(float(values.max()))
        self._pixels.append(values[:: max(1, -(-len(values) // self._an_image))])

    def calibration(self) -> ModelCalibration | None:
        """Return the calibration; None if no image was seen.

        A part's scores are the largest of its images': it is bad if any of them is.
        """
        if not self._peaks:
            return None
        known, members = (None, None) if self.shown is None else self.shown.whole()
        unit = IMAGES if members is None else PARTS

        def of(values: list[float]) -> Calibration:
            own = values if members is None else [max(values[i] for i in numbers) for numbers in members]
            return Calibration(torch.tensor(own), self.origin, unit)

        quantiles = np.quantile(torch.cat(self._pixels).double().numpy(), 1 - np.array(PIXEL_RATES))
        images = {name: of(own) for name, own in self._scores.items()}
        return ModelCalibration(images, of(self._peaks), tuple(quantiles.tolist()), known)


def pixel_areas(xyz: Tensor) -> Tensor:
    """Return the area of the surface that each pixel of an organized cloud stands for.

    The cross product of the steps to the next points along rows and along columns; where a neighbor was not measured,
    the step to the other side; where neither was, the median of all.

    Args:
        xyz: (3, H, W) in metres, zero where nothing was measured.

    Returns:
        (H, W) in mm², zero where nothing was measured.

    Example:
        >>> plane = torch.stack(torch.meshgrid(torch.arange(1.0, 4), torch.arange(1.0, 5), indexing="ij"))
        >>> pixel_areas(torch.cat([plane * 1e-3, torch.ones(1, 3, 4)])).round(decimals=3).unique()
        tensor([1.])
    """
    measured = (xyz != 0).all(0)
    steps = [_steps(xyz.double() * 1000, measured, dim) for dim in (1, 2)]
    area = torch.linalg.cross(steps[0], steps[1], dim=0).norm(dim=0)
    known = measured & torch.isfinite(area)
    usual = float(area[known].median()) if bool(known.any()) else 0.0
    return torch.where(measured, torch.where(known, area, usual), 0.0).float()


def _steps(xyz: Tensor, measured: Tensor, dim: int) -> Tensor:
    """Return the step from each point to a neighbor along an axis, NaN where none was measured."""
    there, ahead = measured.roll(-1, dim - 1) & measured, xyz.roll(-1, dim) - xyz
    last = [slice(None), slice(None)]
    last[dim - 1] = slice(-1, None)
    there[tuple(last)] = False  # the roll brought the first row there
    forward = torch.where(there, ahead, torch.nan)
    return torch.where(there, forward, forward.roll(1, dim))


def _connected(above: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and columns of the pixels of each connected piece of a mask (eight neighbors)."""
    ndimage = import_extra("scipy", "scipy.ndimage", "regions of anomaly maps")
    numbers, _ = ndimage.label(above, structure=np.ones((3, 3)))
    for number, place in enumerate(ndimage.find_objects(numbers), 1):
        rows, columns = np.nonzero(numbers[place] == number)
        yield rows + place[0].start, columns + place[1].start


def _marked(rows: np.ndarray, columns: np.ndarray, marks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and columns of the connected pieces of those pixels that are marked."""
    top, left = int(rows.min()), int(columns.min())
    mask = np.zeros((int(rows.max()) + 1 - top, int(columns.max()) + 1 - left), bool)
    mask[rows - top, columns - left] = marks
    for own_rows, own_columns in _connected(mask):
        yield own_rows + top, own_columns + left


def check_rate_for(rate: float | None, calibration: ModelCalibration | None) -> None:
    """Refuse a false-alarm rate that a model's calibration cannot give a threshold for.

    Raises:
        InputError: There is no calibration, or it has too few images.
    """
    if rate is None:
        return
    if calibration is None:
        raise InputError(
            "false_alarm_rate: expected a model with a calibration, found one without; fit it with validation images,"
            " or with calibration='folds'"
        )
    calibration.own.threshold(rate)
