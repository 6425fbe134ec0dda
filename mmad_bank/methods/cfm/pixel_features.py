"""The features of an image's pixels in both modalities, which are too large to be kept (CFM, section 3.1).

The mappings work on maps of the image's size. A map of 224×224 Point-MAE features takes 231 MB per image, so maps never
exist as a whole: what is kept are the tokens they are interpolated from, a fiftieth of that, and
:class:`PixelFeatures` makes the features of those pixels that are asked for. Bilinear enlargement and the alignment of
point features are both weighted sums of a few tokens per pixel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank.errors import InputError
from mmad_bank.features.point_alignment import pooling_matrix


class PixelFeatures:
    """The features of an image's pixels in both modalities, made when they are asked for.

    RGB features are the tokens, enlarged bilinearly. Point features are those of the three nearest groups of every
    measured point, weighted, put on the points' pixels, averaged over 3×3 pixels without padding and brought to the
    map's size by adaptive pooling (CFM, section 3.1, as published). Without ``groups`` they are given as a whole map.

    Args:
        rgb: (h·w, D) tokens.
        xyz: (G, D') tokens of groups, or the map (size², D').
        grid: (h, w) of the RGB tokens.
        size: Pixels per side of the maps.
        groups: (H, W, k) groups that make up each pixel's point.
        weights: (H, W, k) weights of these groups; zero where nothing is measured.

    Example:
        >>> image = PixelFeatures(torch.rand(4, 8), torch.rand(16, 5), (2, 2), 4)
        >>> image.at("rgb", torch.tensor([0, 15])).shape, len(image.foreground)
        (torch.Size([2, 8]), 16)
    """

    def __init__(
        self, rgb: Tensor, xyz: Tensor, grid: tuple[int, int], size: int,
        groups: Tensor | None = None, weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.rgb, self.xyz, self.grid, self.size = rgb, xyz, grid, size
        self.groups, self.weights = groups, weights
        if len(rgb) != grid[0] * grid[1]:
            raise InputError(f"rgb: expected {grid[0]} x {grid[1]} tokens, found {len(rgb)}")
        if groups is None and len(xyz) != size * size:
            raise InputError(f"xyz: expected a map of {size} x {size} pixels, found {len(xyz)} rows")

    @property
    def foreground(self) -> Tensor:
        """The pixels (n,) int64 that have a point feature; row by row."""
        if self.weights is None:
            return (self.xyz != 0).any(dim=1).nonzero()[:, 0]
        measured = (self.weights > 0).any(dim=2).float()
        rows, columns = (pooling_matrix(side, self.size).to(measured) for side in measured.shape)
        return (rows @ measured @ columns.T).flatten().nonzero()[:, 0]

    def at(self, modality: str, pixels: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Return the features (n, D) of pixels, numbered row by row over the map.

        Other ``tokens`` may take the place of the modality's own: what is linear can be done to them before.
        """
        tokens = getattr(self, modality) if tokens is None else tokens
        if modality == "rgb":
            return _sum_of(tokens, *_places(pixels, self.size, self.grid, "bilinear"))
        if self.groups is None or self.weights is None:
            return tokens[pixels]
        shape = (self.groups.shape[0], self.groups.shape[1])
        places, shares = _places(pixels, self.size, shape, "pooled")
        groups = self.groups.flatten(0, 1)[places].flatten(1)
        weights = self.weights.flatten(0, 1)[places] * shares[..., None]
        return _sum_of(tokens, groups, weights.flatten(1))


def _sum_of(tokens: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sums (n, D) of the tokens (T, D) at places (n, e)."""
    return F.embedding_bag(places, tokens, per_sample_weights=weights, mode="sum")


def _places(pixels: Tensor, size: int, grid: tuple[int, int], kind: str) -> tuple[Tensor, Tensor]:
    """Return the cells of a grid (n, e) that the pixels of a map are weighted sums of, and the weights."""
    by_row, rows = (table.to(pixels.device)[pixels // size] for table in _entries(grid[0], size, kind))
    by_column, columns = (table.to(pixels.device)[pixels % size] for table in _entries(grid[1], size, kind))
    cells = by_row[:, :, None] * grid[1] + by_column[:, None, :]
    return cells.flatten(1), (rows[:, :, None] * columns[:, None, :]).flatten(1)


@lru_cache(maxsize=16)
def _entries(n_in: int, n_out: int, kind: str) -> tuple[Tensor, Tensor]:
    """Return columns and values (n_out, most) of the entries of a resampling matrix, padded with values of zero."""
    if kind == "pooled":
        matrix = pooling_matrix(n_in, n_out)
    else:
        matrix = F.interpolate(torch.eye(n_in)[None], size=n_out, mode="linear", align_corners=False)[0].T
    values, columns = matrix.topk(int((matrix != 0).sum(1).max()), dim=1)
    return columns, values
