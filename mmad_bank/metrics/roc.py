"""The ROC curve and the area under it, of images or of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmad_bank.errors import InputError
from mmad_bank.metrics.inputs import labels_of, scores_of
from mmad_bank.metrics.score_set import MEMORY, ScoreSet
from mmad_bank.metrics.undefined import said


def auroc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve: the probability that an anomalous score exceeds a normal one, ties counting half.

    Args:
        labels: Array or tensor of any shape, bool or numbers; 0 is normal, anything above 0 anomalous.
        scores: The same shape; finite, larger means more anomalous. Compared as float32.

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
    return said(accumulator.compute(), accumulator.undefined)


class AUROC:
    """AUROC of scores that come in parts: images' scores, or masks and maps for P-AUROC.

    The result is exact (see :func:`auroc`), whatever the parts' sizes. Memory is bounded by ``memory`` and a run of 16
    MiB for each class; past that, scores go to a temporary file (4 bytes per score) that vanishes with the process.

    Args:
        memory: Bytes of scores of each class to keep in memory.

    Example:
        >>> pixel_auroc = AUROC()
        >>> for mask, scores in [([[0, 1]], [[0.2, 0.9]]), ([[0, 0]], [[0.3, 0.1]])]:
        ...     pixel_auroc.update(mask, scores)
        >>> pixel_auroc.compute()
        1.0
    """

    def __init__(self, *, memory: int = MEMORY) -> None:
        self.memory = memory
        self._normal = ScoreSet(memory)
        self._anomalous = ScoreSet(memory)

    def update(self, labels: Any, scores: Any) -> None:
        """Add labels and scores of one shape, any shape; see :func:`auroc`."""
        anomalous, values = labels_of(labels, "labels"), scores_of(scores, "scores")
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
        return auroc_of(self._normal, [run.sorted() for run in self._anomalous.runs()])

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


def auroc_of(normal: ScoreSet, anomalous: Sequence[np.ndarray]) -> float:
    """Return the AUROC of normal scores and runs of anomalous ones; there are some of each."""
    twice = 0  # wins count 2 and ties 1; a Python integer does not overflow
    for run in anomalous:
        twice += int(normal.count_below(run).sum()) + int(normal.count_up_to(run).sum())
    return twice / (2 * len(normal) * sum(map(len, anomalous)))


def _steps(n: int, n_points: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, num=min(n, n_points), dtype=np.int64))
