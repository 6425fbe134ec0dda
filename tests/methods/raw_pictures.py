"""Raw samples whose defects lie where they are said to, and a method that sees nothing but colours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmad_bank.data import Preprocessing, Sample
from mmad_bank.methods import PatchCore

SIZE = 64
KEEP = Preprocessing.recipe("keep", size=SIZE)
OPTIONS: dict[str, Any] = {"image_size": SIZE, "grid": (8, 8), "sigma": 1.0, "ratio": 0.5}


def picture(shape: tuple[int, int], seed: int = 0, spot: tuple[int, int] | None = None) -> Sample:
    """A raw sample: soft noise on a flat cloud, perhaps with a bright square around a spot."""
    generator = torch.Generator().manual_seed(seed)
    rgb = 0.4 + 0.05 * torch.rand(3, *shape, generator=generator)
    mask = torch.zeros(shape, dtype=torch.bool)
    if spot is not None:
        half = max(shape) // 16
        mask[max(spot[0] - half, 0) : spot[0] + half, max(spot[1] - half, 0) : spot[1] + half] = True
        rgb[:, mask] = 1.0
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    xyz = torch.stack([x / 1000 + 0.001, y / 1000 + 0.001, 0.4 + 0.002 * torch.rand(shape, generator=generator)])
    label = int(spot is not None)
    defect = "spot" if label else "good"
    return Sample(rgb, xyz, mask, label, defect, "part", id=f"part/test/{defect}/{seed:03d}")


class MeanColours(nn.Module):
    """An extractor whose patches see nothing but themselves."""

    dim, grid, name = 3, (8, 8), "mean colours"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images, self.grid).flatten(2).transpose(1, 2).contiguous()


class Colours(PatchCore):
    """PatchCore on mean colours."""

    def _rgb_network(self, weights: str | None) -> nn.Module:
        del weights
        return MeanColours()


def colours(**arguments: Any) -> Colours:
    return Colours("efficientnet_lite0", "random", **{**OPTIONS, **arguments})
