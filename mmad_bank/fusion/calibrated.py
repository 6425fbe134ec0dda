"""Calibrated fusion: scores of several banks or branches on one scale, that of held-out normal images.

Distances of different banks are in different units. Divided by its mean over normal images that took no part in the
training, an image's score says how many times as far from the bank it lies as a normal image does; these ratios may be
compared and put together. Nothing is learnt but two numbers of each bank, so a few held-out images are enough, and a
bank that is loud on normal images cannot drown the others, as it can in a decision that was learnt on training images
(M3DM's DLF).

Most defects show in one modality, and the other says nothing then but noise. The ratios are therefore put together by a
power mean, which lies between their average and the largest of them:

    score = (mean over parts of (s / mean s of held-out images)¹⁶)^(1/16)

Its exponent makes it a smooth maximum: two parts that are both a little high count for more than one of them alone.
``benchmarks/methods.py decisions`` prints what other exponents give.

Maps are divided by the standard deviation of their pixels on held-out images, and averaged. (A mean does not do: a
point bank's map is next to zero on most of a smooth surface, and would be blown up.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.json_values import inside, number_in, table_in
from mmad_bank.errors import InputError

_SMALLEST = 1e-30  # of a unit, so that float32 can hold what is divided by it
POWER = 16
"""Exponent of the power mean of image scores."""


def power_mean(ratios: Tensor, power: float) -> Tensor:
    """Return the power mean over the first axis; what is negative counts as 0.

    Args:
        ratios: (parts, ...) float, finite.
        power: Exponent, at least 1.

    Example:
        >>> power_mean(torch.tensor([[1.0, 3e30], [1.0, 4e30]]), 2)
        tensor([1.0000e+00, 3.5355e+30])
    """
    ratios = ratios.clamp(min=0)
    largest = ratios.amax(0)  # divided by, so that no power overflows
    return largest * (ratios / largest.clamp(min=_SMALLEST)).pow(power).mean(0).pow(1 / power)


@dataclass(frozen=True)
class CalibratedFusion:
    """Scores of several parts on the scale of held-out normal images.

    Attributes:
        images: Mean image score of held-out images, by part.
        pixels: Standard deviation of the pixels of their maps, by part.

    Raises:
        InputError: There is no part, a number is not finite and above 0, or the parts are not the same.

    Example:
        >>> fusion = CalibratedFusion({"xyz": 0.5, "rgb": 20.0}, {"xyz": 0.1, "rgb": 4.0})
        >>> fusion.fuse_images({"xyz": torch.tensor([0.5, 1.0]), "rgb": torch.tensor([20.0, 20.0])})
        tensor([1.0000, 1.9152])
    """

    images: Mapping[str, float]
    pixels: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.images or set(self.images) != set(self.pixels):
            raise InputError(
                f"images, pixels: expected numbers of the same parts, found {', '.join(self.images) or 'none'} and"
                f" {', '.join(self.pixels) or 'none'}"
            )
        for name, units in (("images", self.images), ("pixels", self.pixels)):
            for part, unit in units.items():
                if not _SMALLEST < unit < math.inf:
                    raise InputError(f"{name}[{part!r}]: expected a finite number above 0, found {unit!r}")

    def fuse_images(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Fuse image scores (n,), by part, to (n,) float32; about 1 for a normal image."""
        return power_mean(self.ratios(scores), POWER)

    def ratios(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return by how much image scores (n,), by part, are larger than the held-out mean: (parts, n) float32."""
        return self._ratios(scores, self.images, "images")

    def fuse_pixels(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Fuse maps of any one shape, by part, to that shape in float32. Linear, pixel by pixel."""
        return self._ratios(scores, self.pixels, "pixels").mean(0)

    def _ratios(self, scores: Mapping[str, Tensor], units: Mapping[str, float], name: str) -> Tensor:
        if set(scores) != set(units):
            found = ", ".join(scores) or "none"
            raise InputError(f"{name}: expected scores of {', '.join(units)}, found {found}")
        return torch.stack([scores[part].float() / unit for part, unit in units.items()])

    def of_parts(self, parts: Mapping[str, Any]) -> CalibratedFusion:
        """Return the fusion of some of the parts.

        Raises:
            InputError: One of them is not known.
        """
        for name in parts:
            if name not in self.images:
                raise InputError(f"parts: expected some of {', '.join(self.images)}, found {name!r}")
        return CalibratedFusion(*({name: means[name] for name in parts} for means in (self.images, self.pixels)))

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values, from which :meth:`from_json` makes the same again."""
        return {"images": dict(self.images), "pixels": dict(self.pixels)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CalibratedFusion:
        """Return what :meth:`as_json` made.

        Raises:
            InputError: A number is none, or not above 0, or the parts are not the same; the message names the field.
        """
        found = []
        for name in ("images", "pixels"):
            units = table_in(content, name)
            with inside(name):
                found.append({part: number_in(units, part) for part in units})
        return cls(*found)


class PartScales:
    """Scales of the parts' scores of held-out normal images, taken one image after the other.

    Verdicts compare a new image's fused score with those of the same held-out images. The new image has no part in the
    scale, so neither may a held-out one in that by which it is fused for the calibration (``without``). On its own
    scale it would count for less than an image that is as far from the bank, and the threshold would be too low.

    Example:
        >>> scales = PartScales()
        >>> for score in (1.0, 3.0):
        ...     scales.take({"rgb": score}, {"rgb": torch.tensor([[0.0, score]])})
        >>> scales.fusion()
        CalibratedFusion(images={'rgb': 2.0}, pixels={'rgb': 1.224744871391589})
    """

    def __init__(self) -> None:
        self._images: dict[str, list[float]] = {}
        self._pixels: dict[str, list[tuple[int, float, float]]] = {}  # number, mean, variance

    def take(self, scores: Mapping[str, float], maps: Mapping[str, Tensor]) -> None:
        """Take an image's scores, and the maps of what shows the picture, by part."""
        for name, score in scores.items():
            self._images.setdefault(name, []).append(score)
            values = maps[name].double()
            variance, mean = torch.var_mean(values, correction=0)
            self._pixels.setdefault(name, []).append((values.numel(), float(mean), float(variance)))

    def fusion(self, *, without: Collection[int] = ()) -> CalibratedFusion | None:
        """Return the fusion; None if no image was seen. A part that does not vary keeps its unit.

        Args:
            without: Numbers of images that do not count, in the order in which they were taken; if they are all, all
                count.
        """
        if not self._images:
            return None
        n = len(next(iter(self._images.values())))
        kept = np.setdiff1d(np.arange(n), list(without)) if len(set(without)) < n else np.arange(n)
        images = {name: _unit(float(np.mean(np.array(own)[kept]))) for name, own in self._images.items()}
        pixels = {name: _unit(_deviation(np.array(own)[kept])) for name, own in self._pixels.items()}
        return CalibratedFusion(images, pixels)


def _deviation(images: np.ndarray) -> float:
    """Return the standard deviation of values of which numbers, means and variances (n, 3) are known by image."""
    numbers, means, variances = images.T
    mean = np.average(means, weights=numbers)
    return float(np.sqrt(np.average(variances + (means - mean) ** 2, weights=numbers)))


def _unit(value: float) -> float:
    return value if value > _SMALLEST else 1.0
