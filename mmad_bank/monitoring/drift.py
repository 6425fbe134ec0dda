"""Drift of scores, found by betting against exchangeability: a conformal test martingale.

Under no drift the scores of new images and those of the calibration are exchangeable: any order of them is as likely as
any other. Then the rank of each score among itself and all before is uniform, and independent of the ranks before it
(Vovk, Nouretdinov, Gammerman 2003: Testing Exchangeability On-Line). P-values by the calibration alone would not do:
they share its luck. If its scores happen to be low, all later p-values are small, and a test that takes them for
independent finds drift sooner or later. So every score that was seen joins the reference.

A player bets on ranks being high (or low), at fair odds: the rank k of m, counted from the top, pays
1 + ε(1 - (2k - 1)/m) for each unit, 1 on average; ε from 0 to 1 is how much is risked. These are the bets of the Simple
Jumper (Vovk, Petej, Nouretdinov, Ahlberg, Carlsson, Gammerman 2021: Retrain or Not Retrain), here up to twice as high,
in the exact form for finite m. They at most double the capital, so no single image warns. The capital is spread over
bets of both directions and over the images at which they begin: after t images a share log 2 / log(t + 2) still waits,
so that long peace does not use it up. Without drift the expected capital is 1 at any time, and by Ville's inequality
(1939) it ever reaches 1/α with a probability of at most α, however long the monitor goes on.

Equal scores take the worse of the ranks that they share, in both directions, which only lowers the capital.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np

from mmad_bank._internal.checks import ArrayLike, check_rate
from mmad_bank.calibration import Calibration
from mmad_bank.errors import InputError

USUAL_RATE = 0.01
"""Chance of a false warning that is taken where none is asked for."""
_RISKS = np.array([0.25, 0.5, 1.0])
_DIRECTIONS: tuple[Literal["up", "down"], ...] = ("up", "down")


class Finding(NamedTuple):
    """Drift that was found.

    Attributes:
        image: Number of the image at which the evidence reached the warning level, from 0.
        since: Number of the image from which on the scores speak for drift most; an estimate.
        direction: ``"up"`` if scores have risen, ``"down"`` if they have fallen.
    """

    image: int
    since: int
    direction: Literal["up", "down"]


class DriftMonitor:
    """Evidence that scores are no longer what they were when they were calibrated.

    Scores are taken one by one, in the order of time, by :meth:`update` or :meth:`extend`. They must be made as the
    calibration's were, by the same bank or model. Drift is what makes the order matter: scores that creep up, a jump, a
    camera that was moved. Defects are drift too if they come often, so leave out images that were found defective. A
    small shift that is there from the first image on may never be found after a calibration with few images, as the
    images that were seen join the reference.

    Args:
        calibration: Scores of normal images.
        false_warning_rate: Chance that drift is ever found where there is none, α.

    Attributes:
        calibration: As given.
        false_warning_rate: As given.
        p_values: P-value of each image among the calibration and all images before it.
        evidence: log10 of the evidence after each image: of what a player has who began with 1 and bets on drift. 2
            says that a hundredfold was won, which happens with a probability of at most 1 % where there is none.
        found: The first :class:`Finding`, or None.

    Raises:
        InputError: A rate that is not above 0 and below 1; a score that is no finite number.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> calibration = Calibration(torch.randn(99, generator=generator))
        >>> monitor = DriftMonitor(calibration)
        >>> monitor.extend(torch.randn(200, generator=generator)).found is None
        True
        >>> monitor.extend(torch.randn(100, generator=generator) + 1).found
        Finding(image=245, since=202, direction='up')
    """

    def __init__(self, calibration: Calibration, false_warning_rate: float = USUAL_RATE) -> None:
        self.false_warning_rate = check_rate(false_warning_rate, "false_warning_rate")
        if not isinstance(calibration, Calibration):
            expected = "expected a Calibration, such as bank.calibration.images"
            raise InputError(f"calibration: {expected}, found {type(calibration).__name__}")
        self.calibration = calibration
        self.p_values: list[float] = []
        self.evidence: list[float] = []
        self.found: Finding | None = None
        self._seen: list[float] = calibration.scores.tolist()
        n_bets = len(_RISKS) * len(_DIRECTIONS)
        self._capital = np.full(n_bets, -math.inf)  # logarithms, of what has been put on each bet
        self._gain = np.zeros(n_bets)  # logarithms of what each has won since it was best to begin with it
        self._since = np.zeros(n_bets, dtype=int)

    def __len__(self) -> int:
        return len(self.evidence)

    def __repr__(self) -> str:
        state = f"no drift in {len(self)} images" if self.found is None else str(self.found)
        return f"<DriftMonitor with {self.calibration!r}: {state}>"

    @property
    def warning_level(self) -> float:
        """log10 of the evidence from which on drift is found, log10(1/α)."""
        return -math.log10(self.false_warning_rate)

    def update(self, score: float) -> bool:
        """Take the next image's score.

        Returns:
            Whether drift has been found, now or before.
        """
        value = float(score)
        if not math.isfinite(value):
            raise InputError(f"scores: expected finite numbers, found {value} for image {len(self)}")
        number, m = len(self), len(self._seen) + 1
        from_top = m - bisect.bisect_left(self._seen, value)
        from_bottom = bisect.bisect_right(self._seen, value) + 1
        bisect.insort(self._seen, value)
        waiting = math.log(2) / math.log(number + 3)
        begun = math.log(2) / math.log(number + 2) - waiting
        self._capital = np.logaddexp(self._capital, math.log(begun / len(self._capital)))
        won = np.log1p(np.concatenate([_RISKS * (1 - (2 * rank - 1) / m) for rank in (from_top, from_bottom)]))
        self._capital += won
        fresh = self._gain <= 0
        self._since[fresh] = number
        self._gain = np.where(fresh, 0.0, self._gain) + won
        self.p_values.append(from_top / m)
        self.evidence.append(float(np.logaddexp.reduce([*self._capital, math.log(waiting)])) / math.log(10))
        if self.found is None and self.evidence[-1] >= self.warning_level:
            best = int(self._capital.argmax())
            self.found = Finding(number, int(self._since[best]), _DIRECTIONS[best // len(_RISKS)])
        return self.found is not None

    def extend(self, scores: ArrayLike | Iterable[float]) -> DriftMonitor:
        """Take the scores of several images, in the order of time; returns the monitor."""
        for score in scores:
            self.update(float(score))
        return self
