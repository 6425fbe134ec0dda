"""Where a bank vector came from: which file, which image, which patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmad_bank.errors import InputError


class Source(NamedTuple):
    """One file (or array) that features were read from."""

    file: str
    rows: int
    patches: int | None
    """Rows an image has; None for a plain (N, D) dump."""


class Origin(NamedTuple):
    """Where one bank vector came from; ``image`` and ``patch`` are None for a plain (N, D) dump."""

    file: str
    row: int
    image: int | None
    patch: int | None


def locate(rows: Tensor, sources: Sequence[Source]) -> list[Origin]:
    """Find the file, image and patch of rows that are counted through all sources in their order."""
    ends = np.cumsum([source.rows for source in sources])
    numbers = rows.cpu().numpy().reshape(-1)
    if len(numbers) and not (len(ends) and numbers.min() >= 0 and numbers.max() < ends[-1]):
        raise InputError(f"source_rows: expected 0 to {int(ends[-1]) - 1 if len(ends) else 0}, found a row outside")
    return [
        _origin(int(number - (ends[which] - sources[which].rows)), sources[which])
        for number, which in zip(numbers, np.searchsorted(ends, numbers, side="right"), strict=True)
    ]


def _origin(row: int, source: Source) -> Origin:
    image, patch = divmod(row, source.patches) if source.patches else (None, None)
    return Origin(source.file, row, image, patch)
