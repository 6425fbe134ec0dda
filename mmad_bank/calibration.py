"""From scores to decisions with a promised false-alarm rate: conformal p-values of held-out normal images.

A score says nothing by itself: its unit is that of the features. Scores of normal images that took no part in the
training say what a normal score is. If a new normal image is like them (exchangeable), its rank among them is uniform,
whatever the features are, and so is the false-alarm rate that follows (Vovk, Gammerman, Shafer 2005: Algorithmic
Learning in a Random World; Bates et al. 2023: Testing for Outliers with Conformal p-values).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, check_rate
from mmad_bank._internal.json_values import numbers_in, text_in
from mmad_bank.errors import InputError

USUAL_RATE = 0.01
"""False-alarm rate that is aimed at where none is asked for."""
LEAST_FOR_TAIL = 20
"""Number of held-out scores from which on a tail is fitted."""
FARTHEST = 0.1
"""Smallest rate that is extrapolated, in parts of the smallest one that is promised."""
_TAIL_SHARE, _TAIL_LEAST = 0.1, 10  # of the scores, and scores, that the tail is fitted to
_JUST = 1 + 1e-12  # for rates such as 0.29 with 99 images, whose product is 28.999... in floating point
_LEAST_WIDTH = 1e-30  # of a scale, where all held-out scores are the same
_LARGEST_RATIO = 1e300  # in which no 1 + x is infinite
_LARGEST_SHAPE = 0.9  # of a tail that still has a mean


class Fold(NamedTuple):
    """Images that are held out together.

    Attributes:
        own: Runs of their numbers, ascending.
        others: Runs of the numbers of all other images, ascending.
    """

    own: list[slice]
    others: list[slice]


def folds_of(marks: Sequence[Hashable], folds: int) -> list[Fold]:
    """Cut images into folds: runs of neighboring ones of about the same length.

    Pictures of one part that lie beside each other stay together, apart from the two at a fold's ends. Equal images
    are always in one fold, that of the first of them: a copy in another one would give a held-out score of about 0.

    Args:
        marks: What tells each image from others; equal images have equal marks.
        folds: Largest number of folds; there are no more than different images.

    Example:
        >>> [fold.own for fold in folds_of(range(7), 3)]
        [[slice(0, 2, None)], [slice(2, 4, None)], [slice(4, 7, None)]]
        >>> [fold.own for fold in folds_of("abcdaef", 3)]
        [[slice(0, 2, None), slice(4, 5, None)], [slice(2, 4, None)], [slice(5, 7, None)]]
    """
    ranks = {mark: rank for rank, mark in enumerate(dict.fromkeys(marks))}
    n = len(ranks)
    ends = [n * number // min(folds, n) for number in range(min(folds, n) + 1)]
    return [
        Fold(
            *(
                runs_of([i for i, mark in enumerate(marks) if (first <= ranks[mark] < last) is held])
                for held in (True, False)
            )
        )
        for first, last in pairwise(ends)
    ]


def runs_of(numbers: Sequence[int]) -> list[slice]:
    """Return the runs of ascending numbers.

    Example:
        >>> runs_of([0, 1, 2, 5])
        [slice(0, 3, None), slice(5, 6, None)]
    """
    starts = [at for at, number in enumerate(numbers) if at == 0 or number != numbers[at - 1] + 1]
    return [slice(numbers[a], numbers[b - 1] + 1) for a, b in pairwise([*starts, len(numbers)])]


def numbers_of(runs: Sequence[slice]) -> list[int]:
    """Return the numbers in runs.

    Example:
        >>> numbers_of([slice(0, 3), slice(5, 6)])
        [0, 1, 2, 5]
    """
    return [number for run in runs for number in range(run.start, run.stop)]


def check_promise(rate: float | None, n_images: int, unit: str = "images") -> None:
    """Refuse a false-alarm rate that a number of held-out images can neither promise nor extrapolate.

    Args:
        rate: The rate; None asks for nothing.
        n_images: Number of held-out images.
        unit: Word for what was held out, where it is not images.

    Raises:
        InputError: It is below 1/(n + 1) with fewer than :data:`LEAST_FOR_TAIL` images, or below a tenth of that: so
            far from what was seen, a tail says little.
    """
    if rate is None or rate * (n_images + 1) * _JUST >= 1:
        return
    least = 1 / (n_images + 1)
    if n_images < LEAST_FOR_TAIL:
        raise InputError(
            f"false_alarm_rate: expected at least 1/(n + 1) = {least:.4g} with {n_images} held-out {unit},"
            f" or {LEAST_FOR_TAIL} of them to extrapolate from, found {rate:g}"
        )
    if rate * _JUST < least * FARTHEST:
        raise InputError(
            f"false_alarm_rate: expected at least {least * FARTHEST:.4g}, a tenth of the 1/(n + 1) that {n_images}"
            f" held-out {unit} can promise, found {rate:g}"
        )


class Threshold(NamedTuple):
    """A limit of scores.

    Attributes:
        score: What is larger is bad.
        rate: False-alarm rate that it stands for, a share of the normal images.
        extrapolated: Whether the rate is below what the held-out images can promise: it rests on a fitted tail then.
    """

    score: float
    rate: float
    extrapolated: bool


class Tail(NamedTuple):
    """A generalized Pareto distribution of what scores exceed a high one by.

    Attributes:
        start: Score from which on it holds.
        scale: Its scale (σ), in the unit of the scores.
        shape: Its shape (ξ), 0 for an exponential tail and larger for a heavier one.
        share: Share of the normal images above ``start``.
    """

    start: float
    scale: float
    shape: float
    share: float

    def score_at(self, rate: float) -> float:
        """Return the score that a share of the normal images exceeds, at most :attr:`share`."""
        times = self.share / rate
        factor = math.log(times) if self.shape == 0 else math.expm1(self.shape * math.log(times)) / self.shape
        return min(self.start + self.scale * factor, sys.float_info.max)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of held-out normal images, and what follows from them.

    Args:
        scores: (n,) scores of normal images that took no part in the training, in any order.
        origin: Words for which images they are.
        unit: Word for what has a score each, where it is not an image: parts of several pictures.

    Attributes:
        scores: float64 (n,), ascending.

    Raises:
        InputError: There is no score, or one is not finite.

    Example:
        >>> calibration = Calibration(torch.arange(1.0, 100.0), "validation images")
        >>> len(calibration), calibration.smallest_rate
        (99, 0.01)
        >>> calibration.p_values(torch.tensor([50.0, 99.0, 120.0]))
        tensor([0.5100, 0.0200, 0.0100], dtype=torch.float64)
        >>> calibration.threshold(0.05)
        Threshold(score=95.0, rate=0.05, extrapolated=False)
    """

    scores: Tensor
    origin: str = "held-out images"
    unit: str = "images"

    def __init__(self, scores: ArrayLike, origin: str = "held-out images", unit: str = "images") -> None:
        values = torch.as_tensor(np.asarray(scores.cpu() if isinstance(scores, Tensor) else scores), device="cpu")
        if values.ndim != 1 or len(values) == 0 or not (values.is_floating_point() or values.dtype == torch.int64):
            raise InputError(f"scores: expected numbers (n,), found {values.dtype} {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise InputError("scores: expected finite ones, found NaN or infinity")
        object.__setattr__(self, "scores", values.double().sort().values)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "unit", unit)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        low, high = float(self.scores[0]), float(self.scores[-1])
        return f"<Calibration of {len(self)} {self.origin}: {low:.4g} to {high:.4g}>"

    @property
    def smallest_rate(self) -> float:
        """The smallest false-alarm rate that so many images can promise, 1/(n + 1)."""
        return 1 / (len(self) + 1)

    @property
    def least_rate(self) -> float:
        """The smallest false-alarm rate that there is a threshold for: extrapolated, where a tail can be fitted.

        Example:
            >>> Calibration(range(9)).least_rate, Calibration(range(99)).least_rate
            (0.1, 0.001)
        """
        return self.smallest_rate * (FARTHEST if len(self) >= LEAST_FOR_TAIL else 1)

    def p_values(self, scores: ArrayLike | float) -> Tensor:
        """Return the conformal p-values of new scores, (1 + #{held-out scores ≥ s}) / (n + 1).

        Of normal images a share of at most α has a p-value of at most α. None is below :attr:`smallest_rate`.

        Args:
            scores: Scores of any shape, made as the held-out ones were.

        Returns:
            float64 on the CPU, in the same shape.
        """
        values = torch.as_tensor(scores).detach().cpu().double()
        below = torch.searchsorted(self.scores, values.contiguous())
        # NaN sorts behind all numbers; it says nothing about an image and gets no small p-value.
        p_values = (1 + len(self) - below).double() / (len(self) + 1)
        return torch.where(values.isnan(), torch.nan, p_values)

    def rate(self, rate: float | None = None) -> float:
        """Return a false-alarm rate as it was asked for, or else 0.01, or :attr:`smallest_rate` if that is larger.

        Raises:
            InputError: It is not above 0 and below 1.
        """
        return max(USUAL_RATE, self.smallest_rate) if rate is None else check_rate(rate, "false_alarm_rate")

    def threshold(self, rate: float | None = None) -> Threshold:
        """Return the score above which an image is bad, at a false-alarm rate.

        For a rate of at least 1/(n + 1) it is the k-th largest held-out score, k = ⌊rate · (n + 1)⌋: a score is above
        it exactly if its p-value is at most the rate. Below that no number of images promises anything, and a tail
        (:attr:`tail`) extrapolates.

        Args:
            rate: Share of the normal images that may be called bad; None takes :meth:`rate`'s.

        Raises:
            InputError: It is out of range, or too small for the number of images, see :func:`check_promise`.
        """
        wanted = self.rate(rate)
        k = math.floor(wanted * (len(self) + 1) * _JUST)
        if k >= 1:
            return Threshold(float(self.scores[-min(k, len(self))]), wanted, False)
        check_promise(wanted, len(self), self.unit)
        assert self.tail is not None
        return Threshold(max(float(self.scores[-1]), self.tail.score_at(wanted)), wanted, True)

    @cached_property
    def tail(self) -> Tail | None:
        """The tail of the largest tenth of the scores; None with fewer than :data:`LEAST_FOR_TAIL` of them.

        Fitted by probability-weighted moments (Hosking and Wallis 1987), which few values suit better than maximum
        likelihood. The shape is kept at 0 or above: a finite end that few scores suggest would promise too much.
        """
        n = len(self)
        if n < LEAST_FOR_TAIL:
            return None
        k = max(_TAIL_LEAST, math.ceil(_TAIL_SHARE * n))
        start = float(self.scores[-k - 1])
        unit = 2.0 ** min(math.frexp(float(self.scores.abs().max()))[1], 1023)  # exact; nothing overflows in it
        excess = (self.scores[-k:] / unit - start / unit).numpy()
        above = 1 - (np.arange(1, k + 1) - 0.35) / k
        first, second = float(excess.mean()), float((above * excess).mean())
        if first <= 0:
            return Tail(start, 0.0, 0.0, k / (n + 1))
        # second is at most first/2 for any ascending values; equal only where the excesses do not vary.
        shape = 2 - first / max(first - 2 * second, 1e-12 * first)
        shape = min(max(shape, 0.0), _LARGEST_SHAPE)
        return Tail(start, min(first * (1 - shape) * unit, sys.float_info.max), shape, k / (n + 1))

    def normalized(self, scores: ArrayLike | float, rate: float | None = None) -> Tensor:
        """Bring scores to a scale from 0 to 1 on which the threshold stands at 0.5.

        With the lowest held-out score a and the threshold t it is x/(1 + x), x = (s - a)/(t - a), and 0 below a. It
        grows with the score and never reaches 1.

        Args:
            scores: Scores of any shape.
            rate: False-alarm rate of the threshold, see :meth:`threshold`.

        Returns:
            float64 on the CPU, in the same shape.
        """
        lowest = float(self.scores[0]) / 2  # halves, whose differences do not overflow
        width = max(self.threshold(rate).score / 2 - lowest, _LEAST_WIDTH)
        x = ((torch.as_tensor(scores).detach().cpu().double() / 2 - lowest) / width).clamp(0, _LARGEST_RATIO)
        return x / (1 + x)

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values, from which :meth:`from_json` makes the same again."""
        unit = {} if self.unit == "images" else {"unit": self.unit}
        return {"origin": self.origin, **unit, "scores": self.scores.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Return what :meth:`as_json` made.

        Raises:
            InputError: It is something else; the message names the field.

        Example:
            >>> Calibration.from_json({"origin": "held-out images", "scores": [1.0, "2.0"]})
            Traceback (most recent call last):
            mmad_bank.errors.InputError: scores[1]: expected a finite number, found '2.0'
        """
        scores = torch.tensor(numbers_in(content, "scores"), dtype=torch.float64)
        unit = text_in(content, "unit") if "unit" in content else "images"
        return cls(scores, text_in(content, "origin"), unit)
