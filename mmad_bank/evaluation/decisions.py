"""What a model's verdicts are worth on images whose truth is known: the confusion, and how the promised rate held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank.calibration import Threshold


@dataclass(frozen=True)
class Decisions:
    """Verdicts on images whose truth is known, or on parts that several images show.

    Attributes:
        threshold: Score above which an image is bad, with the false-alarm rate that it stands for.
        held_out: Number of normal images that the model was calibrated on.
        origin: Words for which images these are.
        found: Number of anomalous images that are bad (true positives).
        missed: Number of anomalous images that are good (false negatives).
        false_alarms: Number of good images that are bad (false positives).
        passed: Number of good images that are good (true negatives).
        best_f1: F1 at the threshold that is best for these images; None without anomalous ones. A factory cannot know
            this threshold; the other figures are to be compared with it.
        best_threshold: That threshold.
        unit: Word for what is judged and was held out, where it is not images.
    """

    threshold: Threshold
    held_out: int
    origin: str
    found: int
    missed: int
    false_alarms: int
    passed: int
    best_f1: float | None
    best_threshold: float | None
    unit: str = "images"

    @classmethod
    def of(
        cls, labels: Sequence[int], scores: Sequence[float], threshold: Threshold, held_out: int, origin: str,
        unit: str = "images",
    ) -> Decisions:  # fmt: skip
        """Judge images by a threshold.

        Args:
            labels: 0 for good images, 1 for anomalous ones.
            scores: Their scores.
            threshold: The threshold.
            held_out: Number of images that it comes from.
            origin: Words for which images these are.
            unit: Word for what is judged, where it is not images.

        Example:
            >>> judged = Decisions.of([0, 0, 1, 1], [1.0, 3.0, 2.5, 5.0], Threshold(2.0, 0.1, False), 9, "images")
            >>> judged.found, judged.missed, judged.false_alarms, judged.passed
            (2, 0, 1, 1)
            >>> judged.precision, judged.recall, judged.f1, judged.best_f1, judged.best_threshold
            (0.6666666666666666, 1.0, 0.8, 0.8, 1.0)
        """
        anomalous, values = np.asarray(labels) > 0, np.asarray(scores, dtype=np.float64)
        bad = values > threshold.score
        best_f1, best_threshold = _best_f1(anomalous, values)
        return cls(
            threshold, held_out, origin, found=int((anomalous & bad).sum()), missed=int((anomalous & ~bad).sum()),
            false_alarms=int((~anomalous & bad).sum()), passed=int((~anomalous & ~bad).sum()), best_f1=best_f1,
            best_threshold=best_threshold, unit=unit,
        )  # fmt: skip

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of the good images that are bad; None without good images."""
        return _share(self.false_alarms, self.passed)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the false-alarm rate (Clopper and Pearson 1934); None without good images."""
        n = self.false_alarms + self.passed
        if not n:
            return None
        stats = import_extra("scipy", "scipy.stats", "confidence intervals")
        low, high = stats.binomtest(self.false_alarms, n).proportion_ci()
        return float(low), float(high)

    @property
    def held(self) -> bool | None:
        """Whether so many false alarms go with the promised rate (the interval's lower end is not above it)."""
        return None if self.interval is None else self.interval[0] <= self.threshold.rate

    @property
    def precision(self) -> float | None:
        """Share of the bad images that are anomalous; None if none is bad."""
        return _share(self.found, self.false_alarms)

    @property
    def recall(self) -> float | None:
        """Share of the anomalous images that are bad; None without anomalous images."""
        return _share(self.found, self.missed)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None without anomalous images."""
        if not self.found + self.missed:
            return None
        return 2 * self.found / (2 * self.found + self.false_alarms + self.missed)

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values; what is undefined is null."""
        interval = self.interval
        return {
            "threshold": self.threshold.score, "promised_false_alarm_rate": self.threshold.rate,
            "extrapolated": self.threshold.extrapolated, "held_out_images": self.held_out, "held_out": self.origin,
            "confusion": {
                "found": self.found, "missed": self.missed, "false_alarms": self.false_alarms, "passed": self.passed
            },
            "false_alarm_rate": self.false_alarm_rate, "interval_95": None if interval is None else list(interval),
            "promise_held": self.held, "precision": self.precision, "recall": self.recall, "f1": self.f1,
            "best_f1": self.best_f1, "best_threshold": self.best_threshold,
            **({} if self.unit == "images" else {"unit": self.unit}),
        }  # fmt: skip


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def _best_f1(anomalous: np.ndarray, scores: np.ndarray) -> tuple[float | None, float | None]:
    """Return the best F1 of all thresholds, and the highest score that is still good there."""
    if not anomalous.any():
        return None, None
    values, place = np.unique(scores, return_inverse=True)  # ascending; a threshold lies at each, or below the first
    bad_at, all_at = (np.bincount(place, weights, len(values)) for weights in (anomalous.astype(float), None))
    found = np.concatenate([[anomalous.sum()], anomalous.sum() - bad_at.cumsum()])
    judged_bad = np.concatenate([[len(scores)], len(scores) - all_at.cumsum()])
    f1 = 2 * found / (judged_bad + anomalous.sum())
    best = len(f1) - 1 - int(f1[::-1].argmax())  # the highest of equal ones: it has the fewest false alarms
    return float(f1[best]), float(values[best - 1]) if best else float(np.nextafter(values[0], -np.inf))
