"""The per-region overlap curve of anomaly maps and the area under it up to a false positive rate: AUPRO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError, MissingExtraError
from mmad_bank.metrics.inputs import labels_of, scores_of
from mmad_bank.metrics.roc import auroc_of
from mmad_bank.metrics.score_set import MEMORY, ScoreSet
from mmad_bank.metrics.undefined import said

LIMITS = (0.3, 0.1, 0.05, 0.01)
"""The false positive rates up to which the field's papers integrate AUPRO."""

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def aupro(masks: Any, maps: Any, limit: float = 0.3, n_thresholds: int | None = 100) -> float:
    """Area under the per-region overlap curve up to a false positive rate (Bergmann et al., MVTec 3D-AD, section 5).

    For every connected component of the ground truth (8-connectivity), the part of it whose score exceeds a threshold;
    averaged over components; as a curve over the false positive rate of the anomaly-free pixels; integrated from 0 to
    ``limit`` by the trapezoid rule, interpolating at the limit, and divided by it.

    Args:
        masks: (B, H, W) or (H, W) ground truth, above 0 is anomalous; or a sequence of (H, W), whose sizes may differ.
        maps: Anomaly maps of the same shapes; finite, larger means more anomalous. Compared as float32.
        limit: False positive rate in (0, 1].
        n_thresholds: Number of thresholds at equal steps of the sorted scores of the anomaly-free pixels; their
            positions give the false positive rates, as in the MVTec evaluation. ``None``: the exact curve over all
            thresholds.

    Returns:
        A value in [0, 1], or NaN with an :class:`UndefinedMetricWarning` if there is no defect or no normal pixel.

    Raises:
        InputError: The shapes differ, a value is not finite, or ``limit`` or ``n_thresholds`` is out of range.

    Example:
        >>> mask = np.zeros((4, 4)); mask[0, 0] = 1
        >>> aupro(mask, mask.astype(float), n_thresholds=None)
        1.0
    """
    accumulator = AUPRO(limits=(limit,), n_thresholds=n_thresholds)
    one = _is_single_image(masks)
    accumulator.update([masks] if one else masks, [maps] if one else maps)
    return said(accumulator.compute()[float(limit)], accumulator.undefined)


class AUPRO:
    """AUPRO at several limits at once, of masks and maps that come image by image.

    The result is that of :func:`aupro` on all images together. The scores of anomaly-free pixels take ``memory`` bytes
    and a run of 16 MiB at most; past that they go to a temporary file (4 bytes per pixel) that vanishes with the
    process. Anomalous pixels, few in any test set, take 8 bytes each.

    Args:
        limits: False positive rates in (0, 1].
        n_thresholds: Number of thresholds, see :func:`aupro`.
        memory: Bytes of scores to keep in memory.

    Raises:
        InputError: A limit or ``n_thresholds`` is out of range.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> metric = AUPRO(limits=(0.3, 0.01), n_thresholds=None)
        >>> mask = np.zeros((1, 8, 8)); mask[0, 2:4, 2:4] = 1
        >>> metric.update(mask, mask + 0.5)
        >>> metric.compute()
        {0.3: 1.0, 0.01: 1.0}
    """

    def __init__(
        self, limits: Sequence[float] = LIMITS, n_thresholds: int | None = 100, *, memory: int = MEMORY
    ) -> None:
        self.limits = tuple(float(limit) for limit in limits)
        self.n_thresholds = n_thresholds
        self.memory = memory
        for limit in self.limits:
            if not 0.0 < limit <= 1.0:
                raise InputError(f"limit: expected a false positive rate above 0 and up to 1, found {limit}")
        if n_thresholds is not None:
            check_index(n_thresholds, "n_thresholds", 2, 2**31 - 1, "both ends of the curve count")
        self._label = _component_labelling()
        self._normal = ScoreSet(memory)
        self._defect_scores: list[np.ndarray] = []
        self._components: list[np.ndarray] = []  # the number of each anomalous pixel's component, from 0
        self._sizes: list[np.ndarray] = []  # pixels of each component

    def update(self, masks: Any, maps: Any) -> None:
        """Add images: (B, H, W) or (H, W) each, or sequences of (H, W)."""
        if _is_single_image(masks):
            masks, maps = [masks], [maps]
        if len(masks) != len(maps):
            raise InputError(f"maps: expected {len(masks)} images as in masks, found {len(maps)}")
        for i, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
            anomalous, values = labels_of(mask, f"masks[{i}]"), scores_of(scores, f"maps[{i}]")
            if anomalous.ndim != 2 or anomalous.shape != values.shape:
                raise InputError(
                    f"maps[{i}]: expected (H, W) as its mask has, found mask {anomalous.shape}, map {values.shape}"
                )
            self._add_image(anomalous, values)

    def _add_image(self, anomalous: np.ndarray, scores: np.ndarray) -> None:
        self._normal.add(scores[~anomalous])
        if not anomalous.any():
            return
        box = _bounding_box(anomalous)  # defects are small: labelling their surroundings only saves most of the time
        labelled, n_components = self._label(anomalous[box], _EIGHT_NEIGHBOURS)
        component = labelled[anomalous[box]] - 1
        first = sum(map(len, self._sizes))
        self._sizes.append(np.bincount(component, minlength=n_components))
        self._components.append((component + first).astype(np.int32))
        self._defect_scores.append(scores[anomalous])

    @classmethod
    def union(cls, parts: Sequence[AUPRO]) -> AUPRO:
        """Return the metric of all images of several, which share their scores with it: nothing is copied or sorted.

        Groups of images (the good ones, those of each kind of defect) can so be measured alone and together. The
        limits and thresholds are those of the first. Add images to the parts, not to the union.
        """
        whole = cls(parts[0].limits, parts[0].n_thresholds, memory=parts[0].memory)
        whole._normal = ScoreSet.union([part._normal for part in parts])
        for part in parts:
            first = whole.n_components
            whole._components += [component + np.int32(first) for component in part._components]
            whole._defect_scores += part._defect_scores
            whole._sizes += part._sizes
        return whole

    def auroc(self) -> float:
        """Return the P-AUROC of the same images, exact as :class:`AUROC`'s; NaN where :attr:`undefined` says why."""
        if self.undefined is not None:
            return math.nan
        scores = np.sort(np.concatenate(self._defect_scores))
        return auroc_of(self._normal, [scores])

    @property
    def n_components(self) -> int:
        """Number of connected components so far."""
        return sum(map(len, self._sizes))

    @property
    def undefined(self) -> str | None:
        """Why there is no AUPRO for what has come so far, or None if there is."""
        if not self._sizes:
            return "AUPRO is undefined: no mask holds a defect"
        if len(self._normal) == 0:
            return "AUPRO is undefined: every pixel of every mask is a defect"
        return None

    def compute(self) -> dict[float, float]:
        """Return the AUPRO at each limit; NaN where :attr:`undefined` says why."""
        if self.undefined is not None:
            return dict.fromkeys(self.limits, math.nan)
        fpr, pro = self.curve()
        return {limit: _area(fpr, pro, limit) / limit for limit in self.limits}

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the false positive rates and the mean overlaps, both rising to 1; empty if :attr:`undefined`."""
        if self.undefined is not None:
            return np.empty(0), np.empty(0)
        scores = np.concatenate(self._defect_scores)
        sizes = np.concatenate(self._sizes)
        # A pixel's share in the mean over components of the part of each that is found.
        weights = (1.0 / (sizes * len(sizes)))[np.concatenate(self._components)]
        return self._exact(scores, weights) if self.n_thresholds is None else self._sampled(scores, weights)

    def _sampled(self, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(self._normal)
        assert self.n_thresholds is not None
        positions = np.linspace(0, n - 1, num=self.n_thresholds, dtype=np.int64)
        thresholds = self._normal.at(positions)
        # A pixel is found at the thresholds below its score: the first ``searchsorted`` of them.
        found_at = np.bincount(np.searchsorted(thresholds, scores, "left"), weights, len(thresholds) + 1)
        overlaps = np.cumsum(found_at[::-1])[::-1][1:]
        fpr = np.concatenate([[1.0], 1.0 - (positions + 1) / n])
        pro = np.concatenate([[1.0], overlaps])
        return fpr[::-1], pro[::-1]

    def _exact(self, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corners of the curve: it rises only where the threshold passes the score of an anomalous pixel."""
        values, place = np.unique(scores, return_inverse=True)
        n = len(self._normal)
        reached = np.cumsum(np.bincount(place, weights)[::-1])
        before = np.concatenate([[0.0], reached[:-1]])
        fpr_above = (n - self._normal.count_up_to(values))[::-1] / n
        fpr_from = (n - self._normal.count_below(values))[::-1] / n  # larger where normal pixels have that score too
        fpr = np.stack([fpr_above, fpr_from], axis=1).ravel()
        pro = np.stack([before, reached], axis=1).ravel()
        return np.concatenate([[0.0], fpr, [1.0]]), np.concatenate([[0.0], pro, [1.0]])


def _area(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Integrate a polyline that rises from x = 0 to 1 by trapezoids from 0 to ``limit``, interpolating there."""
    end = int(np.searchsorted(x, limit, "right"))
    area = float(np.sum(0.5 * (y[1:end] + y[: end - 1]) * np.diff(x[:end])))
    if end < len(x):
        part = limit - x[end - 1]
        at_limit = y[end - 1] + (y[end] - y[end - 1]) * part / (x[end] - x[end - 1])
        area += float(0.5 * (at_limit + y[end - 1]) * part)
    return area


def _component_labelling() -> Any:
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise MissingExtraError("scipy", "multimodal", "AUPRO") from error
    return label


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _is_single_image(masks: Any) -> bool:
    return getattr(masks, "ndim", 3) == 2
