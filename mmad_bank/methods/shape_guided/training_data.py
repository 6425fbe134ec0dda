"""Data that Shape-guided's signed distances and banks are made of: RGB features and clouds, extracted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmad_bank._internal.resume import Stages
from mmad_bank.features.point_alignment import measured_points_of
from mmad_bank.methods.mdss.point_patches import CloudPatches
from mmad_bank.methods.training_features import Dumps, bar


class Pixels(nn.Module):
    """The clouds themselves, with the interface of the networks that describe them; it has no weights.

    Example:
        >>> Pixels()(torch.ones(1, 3, 4, 4)).shape
        torch.Size([1, 16, 3])
    """

    dim, name = 3, "points"

    def forward(self, xyz: Tensor) -> Tensor:
        """Return the points (B, H·W, 3) of clouds (B, 3, H, W), zero where nothing is measured.

        Raises:
            InputError: Nothing of a cloud is measured.
        """
        points = torch.zeros(len(xyz), xyz.shape[2] * xyz.shape[3], 3, device=xyz.device)
        for own, (measured, pixels) in zip(points, measured_points_of(xyz), strict=True):
            own[pixels] = measured
        return points


class ShapeData(NamedTuple):
    """What a category's training images show.

    Attributes:
        dumps: ``"rgb"`` features (n, P, D) and ``"xyz"`` points (n, S·S, 3), memory-mapped.
        patches: (N, K, 3) float32, patches of the clouds that signed distances learn from; empty where none learn.
        counts: (N,) int64, number of distinct points of each.
    """

    dumps: Dumps
    patches: np.ndarray
    counts: Tensor


Cut = Callable[[Tensor], tuple[CloudPatches, Tensor]]
"""Function that cuts a cloud (S·S, 3) into patches, and says which pixels its points lie on."""


def cut_all(clouds: np.ndarray, cut: Cut, stages: Stages) -> Iterator[tuple[CloudPatches, Tensor]]:
    """Cut one cloud after the other, under a bar."""
    with bar("cutting patches", len(clouds), stages) as report:
        for number, cloud in enumerate(clouds, 1):
            yield cut(torch.from_numpy(np.array(cloud)))
            report(number)


def training_patches(clouds: np.ndarray, cut: Cut, stages: Stages) -> tuple[np.ndarray, Tensor]:
    """Cut the patches of all clouds, or take those that an earlier run has cut.

    Returns:
        Patches (N, K, 3), memory-mapped, and the number of distinct points of each, (N,) int64.
    """
    counts_file = stages.state("train-counts.npy")

    def write(path: Path) -> None:
        cuts = [one for one, _ in cut_all(clouds, cut, stages)]
        np.save(counts_file, np.concatenate([np.full(len(one.points), one.count) for one in cuts]))
        with path.open("wb") as file:
            np.save(file, torch.cat([one.points for one in cuts]).numpy())

    path = stages.run("train-patches.npy", write)
    return np.load(path, mmap_mode="r"), torch.from_numpy(np.load(counts_file))
