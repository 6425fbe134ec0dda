"""Certainty of an AUROC of few images: bootstrap intervals, paired differences, choices not made on noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmad_bank.tuning.settings import By, Measured, Setting, recommend

SAMPLES = 2000
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class AUROCs:
    """AUROCs of several scorings of the same images, over the images and over bootstrap samples of them.

    A sample draws as many normal and as many anomalous images as there are, with repetition (Efron and Tibshirani 1993,
    section 8.4). All scorings see the same samples, so that their differences are paired: an image that is hard for one
    is hard for the other.
    """

    own: dict[Setting, float]
    samples: dict[Setting, np.ndarray]
    """(:data:`SAMPLES`,) AUROCs of each."""

    @classmethod
    def of(cls, labels: Tensor, scores: Mapping[Setting, Tensor], *, seed: int = 0) -> AUROCs:
        """Compute them for settings.

        Args:
            labels: (B,) bool, whether an image is anomalous; both are there.
            scores: (B,) image scores by setting.
            seed: Seed of the samples.

        Example:
            >>> import torch
            >>> labels, setting = torch.tensor([False, False, True, True]), Setting(0.1)
            >>> AUROCs.of(labels, {setting: torch.tensor([0.1, 0.4, 0.35, 0.8])}).own[setting]
            0.75
        """
        rng = np.random.default_rng(seed)
        n_anomalous = int(labels.sum())
        counts = [
            rng.multinomial(n, np.full(n, 1 / n), SAMPLES).astype(np.float64)
            for n in (len(labels) - n_anomalous, n_anomalous)
        ]
        own, samples = {}, {}
        for setting, image in scores.items():
            values = image.double().numpy()
            normal, anomalous = values[~labels.numpy()], values[labels.numpy()]
            wins = (anomalous[None] > normal[:, None]) + 0.5 * (anomalous[None] == normal[:, None])
            own[setting] = float(wins.mean())
            samples[setting] = ((counts[0] @ wins) * counts[1]).sum(axis=1) / wins.size
        return cls(own, samples)

    def interval(self, setting: Setting) -> tuple[float, float]:
        """Return the limits that 95 % of the samples lie between."""
        low, high = np.quantile(self.samples[setting], _QUANTILES)
        return float(low), float(high)

    def difference(self, setting: Setting, other: Setting) -> tuple[float, float, float]:
        """Return the AUROC of a setting less that of another, and the limits of 95 % of the samples of it."""
        low, high = np.quantile(self.samples[setting] - self.samples[other], _QUANTILES)
        return self.own[setting] - self.own[other], float(low), float(high)


@dataclass(frozen=True)
class Choice:
    """A setting that is recommended, and on what grounds."""

    best: Measured
    alike: int
    """Number of settings within the budget that the images cannot tell from the most accurate one, itself included."""
    within: int
    """Number of settings within the budget."""
    note: str
    """Remark for people; empty where the choice needs none."""


def choose(
    settings: Sequence[Measured],
    *,
    memory: int | None = None,
    fps: float | None = None,
    by: By = "error",
    aurocs: AUROCs | None = None,
) -> Choice | None:
    """Return the setting to take within a budget, or None if none keeps to it.

    By error it is the most accurate one, see :func:`recommend`: errors against the exact bank on the same images are no
    matter of luck. By AUROC, the images decide only as far as they can: the difference of some settings to the
    highest AUROC within the budget may be chance (its 95 % interval reaches 0). The cheapest of them is taken: the
    smallest in memory, and among equal ones the fastest.

    Args:
        settings: Settings of a :class:`Sweep`.
        memory: Largest number of bytes.
        fps: Smallest number of frames per second.
        by: Measure of accuracy.
        aurocs: AUROCs of the settings, needed by AUROC.
    """
    highest = recommend(settings, memory=memory, fps=fps, by=by)
    if highest is None:
        return None
    within = [one for one in settings if recommend([one], memory=memory, fps=fps) is not None]
    if by == "error" or aurocs is None:
        return Choice(highest, 1, len(within), "")
    alike = [one for one in within if aurocs.difference(one.setting, highest.setting)[2] >= 0]
    best = min(alike, key=lambda one: (one.memory, one.seconds))
    return Choice(best, len(alike), len(within), _note(alike, within, highest, aurocs))


def _note(alike: Sequence[Measured], within: Sequence[Measured], highest: Measured, aurocs: AUROCs) -> str:
    """Say what the images could not decide."""
    if len(alike) == 1:
        return ""
    low, high = aurocs.interval(highest.setting)
    if len(alike) == len(within):
        return (
            f"these images cannot tell the {len(within)} settings apart (95 % interval of the highest I-AUROC {low:.3f}"
            f" to {high:.3f}); the cheapest is named; to choose by accuracy more test images are needed"
        )
    return (
        f"{len(alike)} of {len(within)} settings cannot be told from the highest I-AUROC ({highest.auroc:.3f}, 95 %"
        f" interval {low:.3f} to {high:.3f}) by these images; the cheapest of them is named"
    )
