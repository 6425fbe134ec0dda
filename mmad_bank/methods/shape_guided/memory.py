"""Shape-guided's dual memory: a bank of shape codes, and the bank of RGB features that each of them leads to.

A code is of one patch of one training image. It leads to the RGB features of that image's cells under the patch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank import ops
from mmad_bank._internal.state_dicts import read_torch
from mmad_bank._internal.tensor_files import write_tensors
from mmad_bank.bank import MemoryBank
from mmad_bank.bank.provenance import Source
from mmad_bank.errors import InputError

CODES, COLORS = "xyz", "rgb"
"""Names of the two banks, those of the parts that they score."""


@dataclass(frozen=True)
class DualMemory:
    """Two linked banks (Chu et al. 2023, section 3.2).

    Attributes:
        codes: Bank of the patches' codes, M vectors.
        colors: Bank of the RGB features that codes lead to. Their source rows count through all cells of all images.
        images: (M,) int64, the training image that each code is of.
        cells: (M, ⌈P/8⌉) uint8, a bit for each of the P cells of that image, the first one the highest of its byte.
        places: (images, P) int32, the row in ``colors`` that stands for the feature of each cell, -1 where no code
            leads to it.
    """

    codes: MemoryBank
    colors: MemoryBank
    images: Tensor
    cells: Tensor
    places: Tensor

    @classmethod
    def build(
        cls, codes: Tensor, images: Tensor, cells: Tensor, colors: np.ndarray, *, ratio: float = 1.0, **options: Any
    ) -> DualMemory:
        """Select both banks of what the training images showed.

        A ratio of 1, as in the published code, keeps all codes, and all features that one of them leads to. A smaller
        one takes the coreset of the codes, and of the features that those lead to; a feature that is left out has its
        nearest one in its place.

        Args:
            codes: (N, C) float32, of all patches of all images.
            images: (N,) int64, the image of each patch.
            cells: (N, P) bool, the cells under it.
            colors: (images, P, D) float32, the RGB features of all cells.
            ratio: Share that each bank keeps.
            options: ``device``, ``bank_precision``, and for the selection ``projection_dim``, ``seed`` and
                ``progress``, see :meth:`mmad_bank.MemoryBank.build`; and ``extractors``, by bank.

        Example:
            >>> cells = torch.tensor([[True, False], [False, True]])
            >>> memory = DualMemory.build(torch.eye(2), torch.tensor([0, 1]), cells, np.ones((2, 2, 3), np.float32))
            >>> memory.guided(torch.tensor([1])), memory.colors.source_rows
            (tensor([1]), tensor([0, 3]))
        """
        extractors: Mapping[str, str] = options.pop("extractors", {})
        own = _bank_of(codes, ratio, extractor=extractors.get(CODES), **options)
        own.taken_from([Source("codes", len(codes), None)])
        kept = own.source_rows.cpu()
        images, cells = images[kept], cells[kept]
        n_images, n_cells = colors.shape[:2]
        seen = torch.zeros(n_images, n_cells, dtype=torch.int32).index_add_(0, images, cells.int())
        rows = seen.flatten().nonzero()[:, 0]
        table = torch.from_numpy(colors.reshape(n_images * n_cells, -1)[rows.numpy()])
        bank = _bank_of(table, ratio, extractor=extractors.get(COLORS), **options)
        places = torch.full((n_images * n_cells,), -1, dtype=torch.int32)
        # Of a smaller bank, the nearest vector stands for each feature; of all, each one for itself.
        nearest = bank.source_rows if len(bank) == len(table) else bank.search(table)[1][:, 0]
        places[rows] = nearest.cpu().int()
        bank.taken_from([Source("rgb features", n_images * n_cells, n_cells)], rows)
        packed = torch.from_numpy(np.packbits(cells.numpy(), axis=1))
        return cls(own, bank, images, packed, places.view(n_images, n_cells))

    def nearest(self, codes: Tensor, k: int, without: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Return distances (Q, k) to the nearest codes, and their rows, fewer if there are fewer.

        Args:
            codes: (Q, C).
            k: Number of codes.
            without: Images whose codes do not count, such as the one that is described.

        Raises:
            InputError: No other image has a code.
        """
        if not without:
            return self.codes.search(codes, min(k, len(self.codes)))
        rows = self._of_others(self.images, without)
        if len(rows) == 0:
            raise InputError(
                f"ratio: expected a share that leaves codes of several training images, found {len(self.codes)} kept"
                " codes, all of one image or of copies of it"
            )
        distances, found = ops.knn(codes, self.codes.vectors[rows], min(k, len(rows)))
        return distances, rows[found]

    def guided(self, rows: Tensor, without: Sequence[int] = ()) -> Tensor:
        """Return the rows of the RGB features that codes lead to, each once, in rising order.

        Args:
            rows: Rows of codes, int64 of any shape.
            without: Images whose features do not count.
        """
        rows = rows.unique().cpu()
        seen = torch.zeros(self.places.shape, dtype=torch.int32)
        seen.index_add_(0, self.images[rows], self.cells_of(rows).int())
        found = self.places[seen > 0].unique().long()
        if without:  # an image's feature may stand for one of another image
            others = found[self._mask_of_others(self._image_of_color[found], without)]
            found = others if len(others) else found
        return found.to(self.colors.device)

    def cells_of(self, rows: Tensor) -> Tensor:
        """Return the cells (n, P) bool that codes, rows (n,) of their bank, lead to."""
        bits = np.unpackbits(self.cells[rows].numpy(), axis=1, count=self.places.shape[1])
        return torch.from_numpy(bits).bool()

    def match(self, features: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return distances (Q, k) to the nearest of some RGB features, and their rows, fewer if there are fewer.

        Args:
            features: (Q, D).
            rows: Rows of the features that count, see :meth:`guided`.
            k: Number of features.
        """
        distances, found = ops.knn(features, self.colors.vectors[rows], min(k, len(rows)))
        return distances, rows[found]

    @property
    def _image_of_color(self) -> Tensor:
        return torch.div(self.colors.source_rows.cpu(), self.places.shape[1], rounding_mode="floor")

    def _of_others(self, images: Tensor, without: Sequence[int]) -> Tensor:
        return self._mask_of_others(images, without).nonzero()[:, 0].to(self.codes.device)

    @staticmethod
    def _mask_of_others(images: Tensor, without: Sequence[int]) -> Tensor:
        return ~torch.isin(images, torch.tensor(list(without)))

    @property
    def nbytes(self) -> int:
        """Bytes held in memory by the banks and their links."""
        links = (self.images, self.cells, self.places)
        return self.codes.nbytes + self.colors.nbytes + sum(one.nbytes for one in links)

    def save_links(self, path: str | os.PathLike[str]) -> None:
        """Write what links the banks as safetensors into the file that is there."""
        write_tensors(path, {"images": self.images, "cells": self.cells, "places": self.places})

    @classmethod
    def of(cls, banks: Mapping[str, MemoryBank], links: str | os.PathLike[str]) -> DualMemory:
        """Join two banks by what :meth:`save_links` wrote.

        Raises:
            FormatError: The file is damaged or foreign.
            ValueError: It is of other banks.
        """
        found = read_torch(links)
        images, cells, places = (found[name] for name in ("images", "cells", "places"))
        codes, colors = banks[CODES], banks[COLORS]
        kinds = (images.dtype, cells.dtype, places.dtype) == (torch.int64, torch.uint8, torch.int32)
        shapes = places.ndim == 2 and images.shape == (len(codes),)
        shapes = shapes and cells.shape == (len(codes), -(-places.shape[1] // 8))
        if not (kinds and shapes and _within(images, 0, len(places)) and _within(places, -1, len(colors))):
            raise ValueError(f"{links}: links of other banks")
        memory = cls(codes, colors, images, cells, places)
        for rows in torch.arange(len(codes)).split(1 << 14):
            shown = memory.cells_of(rows)
            if not bool(shown.any(1).all()) or bool((shown & (places[images[rows]] < 0)).any()):
                raise ValueError(f"{links}: links of other banks, as codes lead to cells without a feature")
        return memory


def _within(values: Tensor, low: int, end: int) -> bool:
    return bool(((values >= low) & (values < end)).all())


def _bank_of(table: Tensor, ratio: float, **options: Any) -> MemoryBank:
    """Return the bank of a table's coreset; all of the table needs no selection."""
    if ratio < 1:
        return MemoryBank.build(table, ratio, **options)
    device = options.get("device", "cpu")
    return MemoryBank(
        table, bank_precision=options.get("bank_precision", "auto"), extractor=options.get("extractor")
    ).to(device)
