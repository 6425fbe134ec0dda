"""The cells of the RGB features' grid that lie under patches of points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmad_bank.data.frame import Frame


def cells_under(pixels: Tensor, size: tuple[int, int], grid: tuple[int, int], margin: int = 0) -> Tensor:
    """Return the cells of a grid that each patch covers, and those beside them.

    Args:
        pixels: (P, K) int64, the pixels of P patches' points, numbered row by row: y·W + x.
        size: (H, W) of the picture.
        grid: (h, w) of the cells.
        margin: Number of cells that the patch is widened by, upwards, downwards, to the left and to the right.

    Returns:
        (P, h·w) bool, row by row over the grid.

    Example:
        >>> cells_under(torch.tensor([[0, 1], [15, 15]]), (4, 4), (2, 2))
        tensor([[ True, False, False, False],
                [False, False, False,  True]])
        >>> cells_under(torch.tensor([[0, 1]]), (4, 4), (2, 2), margin=1)
        tensor([[ True,  True,  True, False]])
    """
    (height, width), (h, w) = size, grid
    rows = torch.div(pixels, width, rounding_mode="floor") * h // height
    columns = pixels % width * w // width
    under = torch.zeros(len(pixels), h * w, device=pixels.device).scatter_(1, rows * w + columns, 1.0)
    if margin == 0:
        return under > 0
    cells, wide = under.view(-1, 1, h, w), 2 * margin + 1
    upright = F.max_pool2d(cells, (wide, 1), 1, (margin, 0))
    across = F.max_pool2d(cells, (1, wide), 1, (0, margin))
    return (torch.maximum(upright, across) > 0).flatten(1)


def box_of(cells: Tensor, frame: Frame | None) -> tuple[tuple[int, int] | None, tuple[int, int, int, int] | None]:
    """Return the cell in the middle of some cells (h, w) bool, and the pixels of the picture that they span.

    Args:
        cells: The cells; without one there is neither.
        frame: Place of the grid in the picture; None where it is not known, and then there are no pixels.

    Returns:
        (row, column), and (top, left, bottom, right), the last two not included.

    Example:
        >>> box_of(torch.tensor([[False, True], [False, True]]), Frame.centred((8, 8), 8))
        ((0, 1), (0, 4, 8, 8))
    """
    rows, columns = cells.nonzero(as_tuple=True)
    if len(rows) == 0:
        return None, None
    first, last = (int(rows.min()), int(columns.min())), (int(rows.max()), int(columns.max()))
    middle = (first[0] + last[0]) // 2, (first[1] + last[1]) // 2
    if frame is None:
        return middle, None
    grid = int(cells.shape[0]), int(cells.shape[1])
    return middle, (*frame.box(first, grid)[:2], *frame.box(last, grid)[2:])
