"""The colour scale of a model's maps: how the scores of normal images' pixels are distributed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.json_values import inside, number_in, table_in, text_in
from mmad_bank._internal.progress import progress_bar
from mmad_bank._internal.resume import Stages
from mmad_bank.bank import MemoryBank
from mmad_bank.errors import InputError
from mmad_bank.methods.verdicts import FUSED

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
"""Quantiles that are kept of a distribution; the last is its maximum."""
IMAGES = 16
"""Number of normal images that are looked at, evenly spread."""
_FIRST, _EXTREME = 0.9, 0.999
_STRETCH = 2.0  # the extreme stands in the middle of the scale
_FIRST_NEIGHBORS = 8


@dataclass(frozen=True)
class MapScale:
    """Quantiles of the pixels of normal images' maps, by which all maps of a model are coloured.

    Attributes:
        images: Number of images.
        origin: Words for which images they are.
        quantiles: Score by quantile (:data:`QUANTILES`), by result: ``"fused"`` is the method's own, parts follow.

    Example:
        >>> MapScale(4, "validation images", {"fused": {0.5: 0.1, 0.9: 1.0, 0.99: 1.5, 0.999: 2.0, 1.0: 3.0}}).limits()
        (1.0, 3.0)
    """

    images: int
    origin: str
    quantiles: Mapping[str, Mapping[float, float]]

    def limits(self, result: str = FUSED) -> tuple[float, float]:
        """Return the scores of the first and of the last colour.

        Nine in ten pixels of normal images get the first colour. What one in a thousand of them reaches stands in the
        middle of the scale: the upper colours are left to what normal images do not have.

        Raises:
            KeyError: There is no such result.
        """
        own = self.quantiles[result]
        first, extreme = own[_FIRST], own[_EXTREME]
        width = _STRETCH * (extreme - first)
        return first, first + (width if width > 0 else max(abs(first), 1e-6))

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values."""
        quantiles = {name: {f"{q:g}": score for q, score in own.items()} for name, own in self.quantiles.items()}
        return {"images": self.images, "origin": self.origin, "quantiles": quantiles}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MapScale:
        """Return what :meth:`as_json` made.

        Raises:
            InputError: It is something else; the message names the field.
        """
        quantiles = {}
        for name, own in table_in(content, "quantiles").items():
            with inside(f"quantiles.{name}"):
                quantiles[name] = {q: number_in(own, f"{q:g}") for q in QUANTILES}
        if FUSED not in quantiles:
            raise InputError(f"quantiles: expected those of {FUSED}, found {', '.join(quantiles) or 'none'}")
        return cls(int(number_in(content, "images")), text_in(content, "origin"), quantiles)


def measure_scale(maps: Iterable[Mapping[str, Tensor]], origin: str, total: int, *, progress: bool) -> MapScale | None:
    """Measure the scale on maps of normal images.

    Args:
        maps: Maps of one image after the other, by result.
        origin: Words for which images they are.
        total: About the number of images, for the bar.
        progress: Whether to show a bar on a terminal.

    Returns:
        None if there is no image.
    """
    pixels: dict[str, list[np.ndarray]] = {}
    images = 0
    with progress_bar("measuring the colour scale", total) if progress else nullcontext(lambda done: None) as report:
        for one in maps:
            images += 1
            for name, values in one.items():
                pixels.setdefault(name, []).append(values.detach().cpu().numpy().ravel())
            report(images)
    if not images:
        return None
    quantiles = {}
    for name, found in pixels.items():
        scores = np.quantile(np.concatenate(found), QUANTILES).tolist()
        quantiles[name] = dict(zip(QUANTILES, scores, strict=True))
    return MapScale(images, origin, quantiles)


def scale_by_stage(maps: Iterable[Mapping[str, Tensor]], origin: str, n_images: int, stages: Stages) -> MapScale | None:
    """Measure a scale as a stage of a training, see :func:`measure_scale`.

    Args:
        maps: Maps of the images that :func:`spread` chooses, by result.
        origin: Words for which images they are.
        n_images: Number of images.
        stages: Stages of the training.
    """

    def write(path: Path) -> None:
        scale = measure_scale(maps, origin, len(spread(n_images)), progress=stages.progress)
        path.write_text(json.dumps(scale and scale.as_json()))

    content = json.loads(stages.run("map-scale.json", write).read_text())
    return content and MapScale.from_json(content)


def spread(n: int) -> list[int]:
    """Choose up to :data:`IMAGES` of n images, evenly spread.

    Example:
        >>> spread(3), len(spread(1000))
        ([0, 1, 2], 16)
    """
    return sorted(set(np.linspace(0, n - 1, min(n, IMAGES)).round().astype(int).tolist()))


def distances_to_others(bank: MemoryBank, patches: Tensor, images: Sequence[int]) -> Tensor | None:
    """Return the distances of a training image's patches to the nearest bank rows from other images.

    Distances to the bank as it is would be those of patches that are partly in it, and far too small.

    Args:
        bank: Bank with one source of images with a fixed number of patches; rows beyond it count as another image's.
        patches: (P, D), all patches of the image.
        images: Its number in the source, and those of its copies.

    Returns:
        (P,) float32; None if the bank has no row of another image.
    """
    own = torch.isin(bank.source_rows // len(patches), torch.tensor(images)).to(bank.device)
    n_own = int(own.sum())
    if n_own == len(bank):
        return None
    queries = patches.to(bank.device)
    nearest, missing = _nearest_other(bank, queries, own, min(_FIRST_NEIGHBORS, n_own + 1))
    if bool(missing.any()):
        nearest[missing], _ = _nearest_other(bank, queries[missing], own, n_own + 1)
    return nearest


def _nearest_other(bank: MemoryBank, queries: Tensor, own: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first of the k nearest rows that is not an own one, and where there is none among them."""
    distances, found = bank.search(queries, k)
    others = ~own[found]
    first = others.int().argmax(dim=1, keepdim=True)
    return distances.gather(1, first)[:, 0], ~others.any(dim=1)
