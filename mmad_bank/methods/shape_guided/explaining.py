"""Training patches that are nearest to a place of an image, in either bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmad_bank.data.frame import Frame
from mmad_bank.methods.prediction import Reason
from mmad_bank.methods.shape_guided.cells import box_of
from mmad_bank.methods.shape_guided.memory import DualMemory


class Explanation:
    """Finds what is nearest in the banks, and says which training image it was taken from.

    Args:
        memory: The two banks.
        ids: Ids of the training images.
        frames: Their frames; empty where they are not known.
        grid: (h, w) of the RGB features.
    """

    def __init__(
        self, memory: DualMemory, ids: Sequence[str], frames: Sequence[Frame | None], grid: tuple[int, int]
    ) -> None:
        self.memory, self.ids, self.frames, self.grid = memory, ids, frames, grid

    def codes_near(self, code: Tensor, n: int) -> list[Reason]:
        """Return the patches whose codes are nearest to one (C,), the nearest first."""
        distances, rows = self.memory.nearest(code[None], n)
        reasons = []
        for distance, row in zip(distances[0].tolist(), rows[0].cpu(), strict=True):
            image = int(self.memory.images[row])
            cells = self.memory.cells_of(row[None])[0].view(self.grid)
            reasons.append(self._reason(image, cells, distance))
        return reasons

    def colors_near(self, feature: Tensor, guided: Tensor, n: int) -> list[Reason]:
        """Return the RGB features, of some rows of their bank, that are nearest to one (D,), the nearest first."""
        distances, rows = self.memory.match(feature[None], guided, n)
        reasons, sources = [], self.memory.colors.source_rows[rows[0]].tolist()
        for distance, source in zip(distances[0].tolist(), sources, strict=True):
            image, cell = divmod(source, self.grid[0] * self.grid[1])
            cells = torch.zeros(self.grid, dtype=torch.bool)
            cells.view(-1)[cell] = True
            reasons.append(self._reason(image, cells, distance))
        return reasons

    def _reason(self, image: int, cells: Tensor, distance: float) -> Reason:
        place, box = box_of(cells, self.frames[image] if self.frames else None)
        return Reason(self.ids[image], place, distance, box)


def patch_around(pixels: Tensor, pixel: int) -> int | None:
    """Return the patch in whose middle a pixel lies, as far as any has a point there.

    Args:
        pixels: (P, K) int64, pixels of the patches' points, the nearest to a patch's middle first.
        pixel: The pixel's number.

    Returns:
        Number of the patch; None if no point lies on the pixel.

    Example:
        >>> patch_around(torch.tensor([[4, 7], [7, 5]]), 7)
        1
    """
    patch, rank = (pixels == pixel).nonzero(as_tuple=True)
    return int(patch[rank.argmin()]) if len(patch) else None
