"""The field's metrics, streaming over images: I-AUROC, P-AUROC and AUPRO at any limit.

Scores are held as float32 in runs, each with a histogram. Both questions that the metrics ask are answered exactly from
runs, so it does not matter whether one lies in memory or, past a limit, in a temporary file: a whole test set at full
size is measured in bounded memory. Which score has a given rank is told by the histograms and by the few scores in the
right bins, without sorting the others; how many scores lie below a value, by sorting the runs, once.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import torch

from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.checks import check_index
from mmad_bank.errors import InputError, MissingExtraError

LIMITS = (0.3, 0.1, 0.05, 0.01)
"""The false positive rates up to which the field's papers integrate AUPRO."""

MEMORY = 256 << 20
"""Bytes of scores that an accumulator keeps in memory before it goes on in a temporary file."""

_RUN = 1 << 22  # scores in a run: 16 MiB
_BINS = 1 << 16
# The upper half of a float32's bits rises with a positive value and falls with a negative one, whose sign bit is set.
_BINS_IN_ORDER = np.concatenate([np.arange(_BINS - 1, _BINS // 2 - 1, -1), np.arange(_BINS // 2)])
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


class UndefinedMetricWarning(UserWarning):
    """A metric has no value for this data and came out as NaN; the message says why."""


def auroc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve: the probability that an anomalous score exceeds a normal one, ties counting half.

    Args:
        labels: array or tensor of any shape, bool or numbers; 0 is normal, anything above 0 anomalous.
        scores: the same shape; finite, larger means more anomalous. Compared as float32.

    Returns:
        A value in [0, 1], or NaN with an :class:`UndefinedMetricWarning` if only one class is there.

    Raises:
        InputError: The shapes differ, or a label or score is not a usable number.

    Example:
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    accumulator = AUROC()
    accumulator.update(labels, scores)
    return _said(accumulator.compute(), accumulator.undefined)


def aupro(masks: Any, maps: Any, limit: float = 0.3, n_thresholds: int | None = 100) -> float:
    """Area under the per-region overlap curve up to a false positive rate (Bergmann et al., MVTec 3D-AD, section 5).

    For every connected component of the ground truth (8-connectivity), the part of it whose score exceeds a threshold;
    averaged over components; as a curve over the false positive rate of the anomaly-free pixels; integrated from 0 to
    ``limit`` by the trapezoid rule, interpolating at the limit, and divided by it.

    Args:
        masks: (B, H, W) or (H, W) ground truth, above 0 is anomalous; or a sequence of (H, W), whose sizes may differ.
        maps: anomaly maps of the same shapes; finite, larger means more anomalous. Compared as float32.
        limit: false positive rate in (0, 1].
        n_thresholds: thresholds at equal steps of the sorted scores of the anomaly-free pixels; their positions give
            the false positive rates, as in the MVTec evaluation. ``None``: the exact curve over all thresholds.

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
    return _said(accumulator.compute()[float(limit)], accumulator.undefined)


class AUROC:
    """AUROC of scores that come in parts: images' scores, or masks and maps for P-AUROC.

    The result is exact (see :func:`auroc`), whatever the parts' sizes. Memory is bounded by ``memory`` and a run of 16
    MiB for each class; past that, scores go to a temporary file (4 bytes a score) that vanishes with the process.

    Args:
        memory: bytes of scores of each class to keep in memory.

    Example:
        >>> pixel_auroc = AUROC()
        >>> for mask, scores in [([[0, 1]], [[0.2, 0.9]]), ([[0, 0]], [[0.3, 0.1]])]:
        ...     pixel_auroc.update(mask, scores)
        >>> pixel_auroc.compute()
        1.0
    """

    def __init__(self, *, memory: int = MEMORY) -> None:
        self.memory = memory
        self._normal = _ScoreSet(memory)
        self._anomalous = _ScoreSet(memory)

    def update(self, labels: Any, scores: Any) -> None:
        """Add labels and scores of one shape, any shape; see :func:`auroc`."""
        anomalous, values = _labels(labels, "labels"), _scores(scores, "scores")
        if anomalous.shape != values.shape:
            raise InputError(f"scores: expected the shape of labels, {anomalous.shape}, found {values.shape}")
        self._normal.add(values[~anomalous])
        self._anomalous.add(values[anomalous])

    @property
    def undefined(self) -> str | None:
        """Why there is no AUROC for what has come so far, or None if there is."""
        if len(self._normal) == 0 and len(self._anomalous) == 0:
            return "AUROC is undefined: no scores have been given"
        if len(self._anomalous) == 0:
            return "AUROC is undefined: all labels are normal"
        if len(self._normal) == 0:
            return "AUROC is undefined: all labels are anomalous"
        return None

    def compute(self) -> float:
        """Return the AUROC of everything so far; NaN where :attr:`undefined` says why."""
        if self.undefined is not None:
            return math.nan
        return _auroc(self._normal, [run.sorted() for run in self._anomalous.runs()])

    def curve(self, n_points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """Return false and true positive rates of the ROC curve, both rising from 0 to 1.

        The points lie on the exact curve, at up to ``n_points`` ranks of each class; all its corners are there when
        neither class has more scores than that. Empty arrays where :attr:`undefined` says why.
        """
        if self.undefined is not None:
            return np.empty(0), np.empty(0)
        classes = (self._normal, self._anomalous)
        thresholds = np.unique(np.concatenate([scores.at(_steps(len(scores), n_points)) for scores in classes]))[::-1]
        rates = ((len(scores) - scores.count_below(thresholds)) / len(scores) for scores in classes)
        fpr, tpr = (np.concatenate([[0.0], rate, [1.0]]) for rate in rates)
        return fpr, tpr


class AUPRO:
    """AUPRO at several limits at once, of masks and maps that come image by image.

    The result is that of :func:`aupro` on all images together. The scores of anomaly-free pixels take ``memory`` bytes
    and a run of 16 MiB at most; past that they go to a temporary file (4 bytes a pixel) that vanishes with the process.
    Anomalous pixels, few in any test set, take 8 bytes each.

    Args:
        limits: false positive rates in (0, 1].
        n_thresholds: see :func:`aupro`.
        memory: bytes of scores to keep in memory.

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
        self._normal = _ScoreSet(memory)
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
            anomalous, values = _labels(mask, f"masks[{i}]"), _scores(scores, f"maps[{i}]")
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
        whole._normal = _ScoreSet.union([part._normal for part in parts])
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
        return _auroc(self._normal, [scores])

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


class _Run:
    """Scores in an array of their own, which may be sorted in place, and how many there are in each bin.

    A bin holds the scores whose upper 16 bits are the same; bins are numbered in the order of their scores.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values, self._sorted = values, False
        self.histogram = np.bincount(self._upper_halves(), minlength=_BINS)[_BINS_IN_ORDER]

    def __len__(self) -> int:
        return len(self._values)

    def in_bins(self, wanted: np.ndarray) -> np.ndarray:
        """Return the scores in bins, given as bool (65536,)."""
        by_bits = np.empty_like(wanted)
        by_bits[_BINS_IN_ORDER] = wanted
        return self._values[by_bits[self._upper_halves()]]

    def sorted(self) -> np.ndarray:
        """Return the scores sorted."""
        if not self._sorted:
            self._values.sort()
            self._sorted = True
        return self._values

    def _upper_halves(self) -> np.ndarray:
        return (self._values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


class _ScoreSet:
    """A multiset of float32 scores in runs, in memory up to a limit and in an unnamed file past it."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._file: IO[bytes] | None = None
        self._runs: list[_Run] = []
        self._loose: list[np.ndarray] = []
        self._n_loose = 0
        self._in_runs = 0

    def __len__(self) -> int:
        return self._in_runs + self._n_loose

    @classmethod
    def union(cls, parts: Sequence[_ScoreSet]) -> _ScoreSet:
        """Return the multiset of all scores of several, on the runs that they hold."""
        whole = cls(parts[0]._memory)
        for part in parts:
            whole._runs += part.runs()
            whole._in_runs += len(part)
        return whole

    def add(self, values: np.ndarray) -> None:
        """Add a flat float32 array."""
        for part in np.split(values, range(_RUN, len(values), _RUN)):
            if self._n_loose + len(part) > _RUN:
                self._close_run()
            self._loose.append(part)
            self._n_loose += len(part)

    def runs(self) -> list[_Run]:
        """Return the runs, which hold everything."""
        self._close_run()
        return self._runs

    def count_below(self, values: np.ndarray) -> np.ndarray:
        """Count the scores < each value."""
        return self._count(values, "left")

    def count_up_to(self, values: np.ndarray) -> np.ndarray:
        """Count the scores <= each value."""
        return self._count(values, "right")

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the scores at these positions of the sorted whole; only the bins that they are in get sorted."""
        histogram = np.sum([run.histogram for run in self.runs()], axis=0)
        upto = np.cumsum(histogram)
        bins = np.searchsorted(upto, positions, "right")
        wanted = np.zeros(_BINS, dtype=bool)
        wanted[bins] = True
        scores = np.sort(np.concatenate([run.in_bins(wanted) for run in self._runs]))
        left_out = np.cumsum(np.where(wanted, 0, histogram))  # in unwanted bins, up to each bin
        return scores[positions - left_out[bins]]

    def _count(self, values: np.ndarray, side: Any) -> np.ndarray:
        counts = np.zeros(len(values), dtype=np.int64)
        for run in self.runs():
            counts += np.searchsorted(run.sorted(), values, side)
        return counts

    def _close_run(self) -> None:
        if not self._n_loose:
            return
        values = np.concatenate(self._loose)
        self._loose, self._n_loose = [], 0
        self._in_runs += len(values)
        fits = 4 * self._in_runs <= self._memory
        self._runs.append(_Run(values if fits else self._on_disk(values)))

    def _on_disk(self, values: np.ndarray) -> np.ndarray:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the runs that are mapped from it)
        offset = self._file.seek(0, 2)
        self._file.write(values.data)
        self._file.flush()
        return np.memmap(self._file, dtype=np.float32, mode="r+", offset=offset, shape=values.shape)


def _auroc(normal: _ScoreSet, anomalous: Sequence[np.ndarray]) -> float:
    """Return the AUROC of normal scores and runs of anomalous ones; there are some of each."""
    twice = 0  # wins count 2 and ties 1; a Python integer does not overflow
    for run in anomalous:
        twice += int(normal.count_below(run).sum()) + int(normal.count_up_to(run).sum())
    return twice / (2 * len(normal) * sum(map(len, anomalous)))


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


def _steps(n: int, n_points: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, num=min(n, n_points), dtype=np.int64))


def _said(value: float, undefined: str | None) -> float:
    if undefined is not None:
        warnings.warn(undefined, UndefinedMetricWarning, stacklevel=3)
    return value


def _is_single_image(masks: Any) -> bool:
    return getattr(masks, "ndim", 3) == 2


def _as_array(value: Any, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu")
        value = value.float() if value.dtype == torch.bfloat16 else value
        return array_of(value.contiguous())
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name}: expected an array, found rows of different lengths") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: expected numbers, found {array.dtype}")
    return array


def _labels(value: Any, name: str) -> np.ndarray:
    labels = _as_array(value, name)
    if labels.dtype.kind != "b" and not bool((labels >= 0).all()):
        raise InputError(f"{name}: expected 0 for normal and numbers above 0 for anomalous, found negative ones or NaN")
    return labels > 0


def _scores(value: Any, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        scores = _as_array(value, name).astype(np.float32)
    if not bool(np.isfinite(scores).all()):
        raise InputError(f"{name}: expected finite float32 scores, found NaN or infinity")
    return scores + np.float32(0.0)  # makes -0.0 a 0.0, whose integer key differs
