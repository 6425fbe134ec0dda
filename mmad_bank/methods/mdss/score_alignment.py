"""Alignment of two branches' score maps by their statistics on normal samples, and their union (MDSS, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmad_bank.errors import InputError


class Moments:
    """Mean and standard deviation (of the population) of all values seen, however they come in parts.

    Example:
        >>> seen = Moments()
        >>> for part in (torch.tensor([1.0, 2.0]), torch.tensor([6.0])):
        ...     seen.update(part)
        >>> seen.mean, round(seen.std, 4)
        (3.0, 2.1602)
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Take values of any shape; merged in float64 as Chan et al. (1979) do, so that no digits are lost."""
        n = values.numel()
        if n == 0:
            return
        values = values.detach().double()
        mean = float(values.mean())
        total, shift = self.count + n, mean - self.mean
        self._squares += float((values - mean).square().sum()) + shift**2 * self.count * n / total
        self.mean += shift * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation, divided by the number of values; 0 where nothing was seen."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0


@dataclass(frozen=True)
class ScoreAlignment:
    """Brings RGB scores to the scale of 3-D scores: mean ± 3 std of the ones fall on mean ± 3 std of the others.

    Attributes:
        rgb_mean: Mean of RGB scores of normal samples kept out of training.
        rgb_std: Standard deviation of the same.
        xyz_mean: Mean of 3-D scores.
        xyz_std: Standard deviation of the same.

    Example:
        >>> alignment = ScoreAlignment(rgb_mean=10.0, rgb_std=2.0, xyz_mean=1.0, xyz_std=0.5)
        >>> alignment.align(torch.tensor([4.0, 10.0, 16.0]))
        tensor([-0.5000,  1.0000,  2.5000])
    """

    rgb_mean: float
    rgb_std: float
    xyz_mean: float
    xyz_std: float

    @classmethod
    def of(cls, rgb: Moments, xyz: Moments) -> ScoreAlignment:
        """Make the alignment of two branches' moments.

        Raises:
            InputError: A branch has no scores, or its scores do not vary.
        """
        for name, moments in (("rgb", rgb), ("xyz", xyz)):
            if not 0 < moments.std < math.inf:
                raise InputError(
                    f"{name}: expected scores of normal samples that vary, found {moments.count} with a standard"
                    f" deviation of {moments.std:g}; samples that are copies of one another have such scores"
                )
        return cls(rgb.mean, rgb.std, xyz.mean, xyz.std)

    @classmethod
    def saved(cls, values: Mapping[str, Any]) -> ScoreAlignment:
        """Make the alignment of what ``dataclasses.asdict`` gave, as a file holds it.

        Raises:
            ValueError: A number is not finite, or a standard deviation is not above 0.

        Example:
            >>> ScoreAlignment.saved({"rgb_mean": 1.0, "rgb_std": 2.0, "xyz_mean": 1.0, "xyz_std": 0.5}).rgb_std
            2.0
        """
        found = cls(**values)
        for name, value in asdict(found).items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (name.endswith("_std") and value <= 0):
                wanted = "above 0" if name.endswith("_std") else "finite"
                raise ValueError(f"alignment: expected {name} to be a number, {wanted}, found {value!r}")
        return found

    def align(self, rgb: Tensor) -> Tensor:
        """Return RGB scores on the scale of 3-D scores."""
        return (rgb - self.rgb_mean) * (self.xyz_std / self.rgb_std) + self.xyz_mean

    def union(self, rgb: Tensor, xyz: Tensor) -> Tensor:
        """Return the larger of the aligned RGB score and the 3-D score, pixel by pixel."""
        return torch.maximum(self.align(rgb), xyz)
