"""Patches of padding, which are features of nothing: the picture's window of the grid is scored, and no more.

The patches that count may also be any of the grid, as a region of interest says (:mod:`mmad_bank.methods.roi`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from mmad_bank.bank import Scores
from mmad_bank.data.frame import Frame

Window = tuple[slice, slice]
"""Rows and columns of a grid."""


def window_of(frame: Frame | None, grid: tuple[int, int]) -> Window:
    """Return rows and columns of a grid that lie in the picture; all of them where its frame is not known."""
    return (slice(0, grid[0]), slice(0, grid[1])) if frame is None else frame.cells(grid)


def window_cells(grid: tuple[int, int], window: Window | Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of the patches that count (V,), and for each patch of the grid (P,) the nearest of those V.

    Args:
        grid: (h, w) of the patches.
        window: Rows and columns of those that count, or a mask (h, w) of them.
    """
    if isinstance(window, Tensor):
        return _masked_cells(grid, window.numpy().tobytes())
    rows, columns = window
    width = columns.stop - columns.start
    row, column = (torch.arange(n).clamp(part.start, part.stop - 1) for n, part in zip(grid, window, strict=True))
    inside = torch.arange(grid[0] * grid[1]).view(grid)[rows, columns].flatten()
    return inside, ((row - rows.start)[:, None] * width + (column - columns.start)).flatten()


@lru_cache(maxsize=16)
def _masked_cells(grid: tuple[int, int], mask: bytes) -> tuple[Tensor, Tensor]:
    inside = torch.frombuffer(bytearray(mask), dtype=torch.bool).nonzero().flatten()
    numbers = torch.arange(grid[0] * grid[1])
    places = torch.stack([numbers // grid[1], numbers % grid[1]], dim=1).float()
    # A few rows at a time: a grid of 112 × 112 has 10⁸ distances.
    nearest = [torch.cdist(part, places[inside]).argmin(dim=1) for part in places.split(512)]
    return inside, torch.cat(nearest)


def _key(window: Window | Tensor) -> Hashable:
    if isinstance(window, Tensor):
        return window.numpy().tobytes()
    rows, columns = window
    return rows.start, rows.stop, columns.start, columns.stop


def score_in_windows(
    score: Callable[[Tensor], Scores], patches: Tensor, windows: Sequence[Window | Tensor], grid: tuple[int, int]
) -> Scores:
    """Score the patches of images that lie in their pictures.

    Patches of padding would have a say in the image's score. Each of them repeats, in the result, the nearest patch of
    the picture, so that nothing of them reaches the map either, which is enlarged and blurred.

    Args:
        score: Function that scores patches (B, P, D).
        patches: Patches (B, h·w, D).
        windows: Window of each image, or a mask of the patches that count.
        grid: (h, w) of the patches.
    """
    groups: dict[Hashable, list[int]] = {}
    for b, window in enumerate(windows):
        groups.setdefault(_key(window), []).append(b)
    if list(groups) == [(0, grid[0], 0, grid[1])]:
        return score(patches)
    found = [_score_window(score, patches, images, windows[images[0]], grid) for images in groups.values()]
    order = torch.tensor([b for images in groups.values() for b in images]).argsort()

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))[order.to(parts[0].device)]

    return Scores(*map(joined, zip(*found, strict=True)))


def _score_window(
    score: Callable[[Tensor], Scores],
    patches: Tensor,
    images: list[int],
    window: Window | Tensor,
    grid: tuple[int, int],
) -> Scores:
    """Score the patches in a window of the grid of some images, and repeat the outermost ones around it."""
    inside, repeated = window_cells(grid, window)

    def spread(values: Tensor) -> Tensor:
        return values[:, repeated.to(values.device)]

    own = score(patches[images][:, inside.to(patches.device)])
    return Scores(spread(own.patch), own.image, spread(own.nearest))
