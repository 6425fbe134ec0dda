"""The depth that AST looks at, and the foreground, both from an organized cloud without its background."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_bank._internal.checks import check_index
from mmad_bank.features.point_alignment import measured_points_of

CELL = 8
"""Pixels of the depth map along a cell's side, which become the 8 · 8 channels of the cell."""
DILATION = 8
"""Side of the square by which the foreground grows, in pixels of the depth map."""
_FILLS = 3
_PER_METRE = 100.0  # the networks are given centimetres, of the size of the RGB features


class Depth(nn.Module):
    """Depth and foreground of clouds, on the grid of the RGB features; it has no weights.

    The object's depth is measured from its own mean, in centimetres, so that it does not depend on the distance of the
    camera; the background is 0, as if it lay in that mean. Gaps of a few pixels are filled. A map of 8 × 8 pixels per
    cell becomes 64 channels per cell, nothing is averaged away.

    Args:
        grid: (h, w) of the cells.
        foreground: Whether cells without the object count as background; False gives ones everywhere.

    Example:
        >>> xyz = torch.zeros(1, 3, 16, 16)
        >>> xyz[..., 4:12, 4:12] = 0.5
        >>> depth, foreground = Depth((2, 2)).maps(xyz)
        >>> depth.shape, foreground.shape, float(depth.abs().max())
        (torch.Size([1, 64, 2, 2]), torch.Size([1, 2, 2]), 0.0)
    """

    dim = CELL * CELL

    def __init__(self, grid: tuple[int, int], *, foreground: bool = True) -> None:
        super().__init__()
        for side in grid:
            check_index(side, "grid", 1, 2**12, "cells along a side")
        self.grid, self.foreground = (int(grid[0]), int(grid[1])), foreground

    @property
    def name(self) -> str:
        """Name of the extractor, as files record it."""
        return f"depth {CELL}x{CELL} grid {self.grid[0]}x{self.grid[1]}"

    @torch.no_grad()
    def forward(self, xyz: Tensor) -> Tensor:
        """Describe clouds (B, 3, H, W) in metres by features (B, h·w, 64), see :meth:`maps`."""
        return self.maps(xyz)[0].flatten(2).transpose(1, 2).contiguous()

    @torch.no_grad()
    def maps(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Describe clouds.

        Args:
            xyz: (B, 3, H, W), metres, zeros (or NaN) where nothing was measured and where background was removed.

        Returns:
            The depth (B, 64, h, w) in centimetres, and the share of the foreground in each cell, (B, h, w), from 0 to
            1.

        Raises:
            InputError: The shape is another one, or a cloud has no measured point.
        """
        measured = torch.zeros(xyz.shape[0], 1, *xyz.shape[2:], device=xyz.device)
        for one, (_, pixels) in zip(measured, measured_points_of(xyz), strict=True):
            one.view(-1)[pixels] = 1.0
        size = (CELL * self.grid[0], CELL * self.grid[1])
        depth = _resized(centered(xyz[:, 2:], measured > 0), size)
        if not self.foreground:
            return F.pixel_unshuffle(depth, CELL), torch.ones(len(xyz), *self.grid, device=xyz.device)
        there = dilated((_resized(measured, size) > 0).float())
        return F.pixel_unshuffle(depth, CELL), _resized(there, self.grid)[:, 0]


def centered(z: Tensor, measured: Tensor) -> Tensor:
    """Return the depth from the mean of the measured one, in centimetres, its gaps filled; 0 elsewhere.

    Args:
        z: (B, 1, H, W), metres.
        measured: (B, 1, H, W) bool, where it was measured.

    Example:
        >>> z = torch.tensor([0.1, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 7)
        >>> centered(z, z > 0).flatten()  # three pixels are filled, each by the mean of its neighbors
        tensor([-10.0000,  10.0000,  10.0000,  10.0000,  10.0000,   0.0000,   0.0000])
    """
    filled, known = fill_gaps(z.where(measured, z.new_zeros(())), measured)
    own, total = measured.flatten(1), filled.flatten(1).double()
    mean = (total * own).sum(1) / own.sum(1)
    depth = (filled - mean.view(-1, 1, 1, 1)) * _PER_METRE
    return depth.where(known, 0.0).float()


def fill_gaps(z: Tensor, measured: Tensor, passes: int = _FILLS) -> tuple[Tensor, Tensor]:
    """Give pixels without a value the mean of their 3×3 neighbors that have one, several times.

    Args:
        z: (B, 1, H, W), 0 where nothing was measured.
        measured: (B, 1, H, W) bool, where there is a value.
        passes: How often: gaps are filled from their border, a pixel each time.

    Returns:
        The values, and where there is one now, bool; both (B, 1, H, W).

    Example:
        >>> z = torch.tensor([2.0, 4.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 5)
        >>> values, known = fill_gaps(z, z > 0, passes=2)
        >>> values.flatten().tolist(), known.flatten().tolist()
        ([2.0, 4.0, 4.0, 4.0, 0.0], [True, True, True, True, False])
    """
    for _ in range(passes):
        count = F.avg_pool2d(measured.float(), 3, 1, 1, divisor_override=1)
        mean = F.avg_pool2d(z, 3, 1, 1, divisor_override=1) / count.clamp(min=1)
        z, measured = z.where(measured, mean), count > 0
    return z, measured


def dilated(mask: Tensor, size: int = DILATION) -> Tensor:
    """Let the ones of a mask (B, 1, H, W) grow by a square; the middle of an even one is at size // 2, as SciPy has it.

    Example:
        >>> dilated(torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).view(1, 1, 1, 7), 4).flatten()
        tensor([0., 1., 1., 1., 1., 0., 0.])
    """
    before, after = (size - 1) // 2, size // 2
    return F.max_pool2d(F.pad(mask, (before, after, before, after)), size, 1)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to a size bilinearly, without averaging more than the four nearest pixels, as AST's code does."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
