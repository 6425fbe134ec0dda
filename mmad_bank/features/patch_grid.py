"""Patches from one grid to another, as adaptive average pooling brings them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank.errors import InputError

Grid = tuple[int, int]


def repeats(grid: Grid, wanted: Grid) -> bool:
    """Say whether each patch of the wanted grid lies in one patch of the other: patches are repeated then, not mixed.

    Example:
        >>> repeats((28, 28), (56, 56)), repeats((16, 16), (56, 56))
        (True, False)
    """
    return all(m % n == 0 for n, m in zip(grid, wanted, strict=True))


def to_grid(patches: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """Bring patches to another grid by adaptive average pooling.

    A patch of the wanted grid is the mean of the patches that it touches. On a grid that is a multiple of the other's,
    such as 56 × 56 of 28 × 28, each patch repeats one (M3DM's published code enlarges RGB features in this way).

    Args:
        patches: (..., h·w, D), row by row.
        grid: (h, w) of the patches.
        wanted: (h', w') of the result.

    Returns:
        (..., h'·w', D) of the same dtype; the very tensor where nothing changes.

    Raises:
        InputError: The patches do not fit the grid.

    Example:
        >>> to_grid(torch.tensor([[1.0], [2.0]]), (1, 2), (2, 4)).flatten()
        tensor([1., 1., 2., 2., 1., 1., 2., 2.])
    """
    if patches.ndim < 2 or patches.shape[-2] != grid[0] * grid[1]:
        raise InputError(f"patches: expected {grid[0]} x {grid[1]} in a row, found shape {tuple(patches.shape)}")
    if grid == wanted:
        return patches
    if repeats(grid, wanted):
        row, column = (torch.arange(m) * n // m for n, m in zip(grid, wanted, strict=True))
        return patches.index_select(-2, (row[:, None] * grid[1] + column).flatten().to(patches.device))
    maps = patches.flatten(0, -3) if patches.ndim > 2 else patches[None]
    pooled = F.adaptive_avg_pool2d(maps.transpose(1, 2).unflatten(2, grid), wanted).flatten(2).transpose(1, 2)
    return pooled.reshape(*patches.shape[:-2], wanted[0] * wanted[1], patches.shape[-1])
