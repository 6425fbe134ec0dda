"""Scattered points as an organized cloud: seen along the thinnest axis, with the way back from pixels to points.

Methods on images need a plane of pixels, which a scanner's points do not have. Here they are looked at from afar, and
each pixel keeps the nearest point that falls on it. Every point knows its pixel, so a map's scores come back to all
points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmad_bank.errors import InputError

LONGEST = 256
"""The most pixels along the longer side of a projection."""
_SHORTEST = 8
_PER_PIXEL = 2
# A point belongs to the surface that is seen if a slope of 4 in 1 leads there from the nearest point within two pixels.
# Deeper ones lie on the other side of the part, and are seen through the gaps between points.
_STEEPEST, _AROUND = 4.0, 2
# Distance of the camera, in lengths of the object: no coordinate is zero, which would count as unmeasured.
_AWAY = 10.0


@dataclass(frozen=True, repr=False)
class Points:
    """The scattered points that an organized cloud was made of.

    Attributes:
        xyz: (N, 3), float32, in the file's frame and the sample's unit.
        labels: (N,), bool, True on defects; None where it is not known.
        pixels: (N, 2), int64, row and column of the picture's pixel on which each point falls.
        seen: (N,), bool: whether the point lies in the surface that is seen, and not hidden behind it.
    """

    xyz: torch.Tensor
    labels: torch.Tensor | None
    pixels: torch.Tensor
    seen: torch.Tensor

    def __len__(self) -> int:
        return len(self.xyz)

    def __repr__(self) -> str:
        defective = "unknown" if self.labels is None else f"{int(self.labels.sum()):,} on defects"
        return f"<Points: {len(self):,}, {defective}, {float(self.seen.float().mean()):.0%} seen>"


def project(
    points: np.ndarray, labels: np.ndarray | None, *, back: bool = False
) -> tuple[np.ndarray, np.ndarray | None, Points]:
    """Look at points along their thinnest axis.

    The axes are the principal ones, so that the view does not depend on how the part lay. Of the two sides along the
    thinnest axis the view is the one from which the surface bulges, its rim farther than its middle: that is the side
    which a scanner has seen that saw only one. A square picture would have two points per pixel, which leaves few
    holes, but no picture has more than 256 pixels per side.

    Args:
        points: (N, 3), finite.
        labels: (N,), bool, True on defects; None where it is not known.
        back: Whether to look from the other side, turned about the upright axis.

    Returns:
        The organized cloud (H, W, 3), float32, in a camera's frame (x right, y down, z away) and the points' unit,
        zeros on pixels without a point; the mask (H, W) of the points that it shows, None without labels; and the
        points.

    Raises:
        InputError: They are fewer than three, or all at one place.
    """
    axes = _principal_axes(points)
    if back:
        axes = axes * np.array([[-1], [1], [-1]])
    # Camera: x along the longest axis, y downwards, z away from the viewer, who stands on the positive thinnest axis.
    seen = (points - points.mean(axis=0)) @ (axes * np.array([[1], [-1], [-1]])).T
    low, extent = seen.min(axis=0), np.ptp(seen, axis=0)
    length = float(extent.max())
    if not extent[:2].max() > 0:
        raise _at_one_place(points)
    pitch, (height, width) = _pixels(extent[:2], len(points))
    columns, rows = (
        np.minimum((seen[:, i] - low[i]) // pitch, n - 1).astype(np.int64) for i, n in ((0, width), (1, height))
    )
    flat = rows * width + columns
    order = np.lexsort((seen[:, 2], flat))
    pixels, first = np.unique(flat[order], return_index=True)
    nearest = order[first]
    hidden = seen[:, 2] - _front(pixels, seen[nearest, 2], (height, width))[flat] > _STEEPEST * _AROUND * pitch
    pixels, nearest = pixels[~hidden[nearest]], nearest[~hidden[nearest]]

    xyz = np.zeros((height * width, 3), dtype=np.float32)
    xyz[pixels] = (seen[nearest] - low - extent / 2 + _AWAY * length).astype(np.float32)
    marked = np.zeros(height * width, dtype=bool)
    if labels is not None:
        marked[pixels] = labels[nearest]
    known = Points(
        torch.from_numpy(points.astype(np.float32)),
        None if labels is None else torch.from_numpy(labels.copy()),
        torch.from_numpy(np.stack([rows, columns], axis=1)),
        torch.from_numpy(~hidden),
    )
    mask = None if labels is None else marked.reshape(height, width)
    return xyz.reshape(height, width, 3), mask, known


def _principal_axes(points: np.ndarray) -> np.ndarray:
    """Return the longest, middle and thinnest axis, unit rows (3, 3), right-handed, the same however the part lay."""
    if len(points) < 3:
        raise InputError(f"points: expected three or more, found {len(points)}")
    centered = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered / len(points))
    if not values[-1] > 0:
        raise _at_one_place(points)
    thin, _, long = vectors.T
    height, out = centered @ thin, (centered**2).sum(axis=1)
    out = out - height**2  # squared distance from the middle, across the thin axis
    if np.mean((height - height.mean()) * (out - out.mean())) > 0:
        thin = -thin
    if np.mean((centered @ long) ** 3) < 0:
        long = -long
    return np.stack([long, np.cross(thin, long), thin])


def _at_one_place(points: np.ndarray) -> InputError:
    return InputError(f"points: expected an object, found {len(points):,} points at one place")


def _front(pixels: np.ndarray, depths: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the smallest depth around each pixel, (H·W,); infinite where there is no point."""
    front = torch.full((size[0] * size[1],), torch.inf, dtype=torch.float64)
    front[torch.from_numpy(pixels)] = torch.from_numpy(depths)
    around = 2 * _AROUND + 1
    return -torch.nn.functional.max_pool2d(-front.view(1, *size), around, 1, _AROUND).view(-1).numpy()


def _pixels(extent: np.ndarray, n_points: int) -> tuple[float, tuple[int, int]]:
    """Return the side of a pixel, and the height and width of the picture in pixels."""
    longer = int(np.clip(np.sqrt(n_points / _PER_PIXEL), _SHORTEST, LONGEST))
    pitch = float(extent.max()) / longer
    width, height = (max(1, int(np.ceil(side / pitch - 1e-9))) for side in extent)
    return pitch, (height, width)
