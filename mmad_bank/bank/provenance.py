"""Where a bank vector came from: which file, which image, which patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mmad_bank._internal.manifest import Manifest
from mmad_bank.errors import InputError


class Source(NamedTuple):
    """One file (or array) that features were read from."""

    file: str
    rows: int
    patches: int | None
    """Number of rows per image; None for a plain (N, D) dump."""
    grid: tuple[int, int] | None = None
    """(h, w) of the patches, row by row; None if it is not known."""
    names: tuple[str, ...] | None = None
    """Names of the images; None if they have none of their own."""

    @property
    def images(self) -> int:
        """Number of images; 1 for a plain (N, D) dump."""
        return self.rows // (self.patches or self.rows)

    def name(self, image: int) -> str:
        """Return an image's name: its own, or the file's stem, with the number of the image if there are several.

        Example:
            >>> Source("train/rgb.npy", 20, 10).name(1), Source("train/a.npy", 20, 20).name(0)
            ('rgb[1]', 'a')
        """
        if self.names is not None:
            return self.names[image]
        stem = PurePath(self.file).stem
        return f"{stem}[{image}]" if self.images > 1 else stem

    def place(self, row: int) -> str:
        """Say where a row is, for messages: image and patch, as far as they are known.

        Example:
            >>> Source("a.npy", 20, None).place(13), Source("a.npy", 20, 10).place(13)
            ('row 13', 'image 1, patch 3')
            >>> Source("a.npy", 20, 10, (2, 5), ("good/000", "good/001")).place(19)
            "image 1 ('good/001'), patch 9 (row 1, column 4)"
        """
        if self.patches is None:
            return f"row {row}"
        image, patch = divmod(row, self.patches)
        words = [] if self.images == 1 and self.names else [str(image)]
        words += [] if self.names is None else [f"({self.names[image]!r})" if words else repr(self.names[image])]
        place = "" if self.grid is None else " (row {}, column {})".format(*divmod(patch, self.grid[1]))
        return f"image {' '.join(words)}, patch {patch}{place}"


class Origin(NamedTuple):
    """Where one bank vector came from; ``image`` and ``patch`` are None for a plain (N, D) dump."""

    file: str
    row: int
    image: int | None
    patch: int | None
    name: str
    """Name of the image, see :meth:`Source.name`."""
    place: tuple[int, int] | None
    """(row, column) of the patch in its grid; None if the grid is not known."""


def locate(rows: Tensor, sources: Sequence[Source]) -> list[Origin]:
    """Find the file, image and patch of rows that are counted through all sources in their order."""
    check_rows(rows, sources)
    ends = np.cumsum([source.rows for source in sources])
    numbers = rows.cpu().numpy().reshape(-1)
    return [
        _origin(int(number - (ends[which] - sources[which].rows)), sources[which])
        for number, which in zip(numbers, np.searchsorted(ends, numbers, side="right"), strict=True)
    ]


def check_rows(rows: Tensor, sources: Sequence[Source]) -> None:
    """Refuse rows that are not of the sources.

    Raises:
        InputError: A row lies outside.
    """
    total = sum(source.rows for source in sources)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total <= 2**62:
        raise InputError(f"source_rows: expected 0 to {total - 1} (the rows of {len(sources)} sources), found others")


def _origin(row: int, source: Source) -> Origin:
    image, patch = divmod(row, source.patches) if source.patches else (None, None)
    place = None if source.grid is None or patch is None else divmod(patch, source.grid[1])
    return Origin(source.file, row, image, patch, source.name(image or 0), place)


def describe_images(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Return the grids and names of sources, JSON-ready; empty if none has any."""
    if all(source.grid is None and source.names is None for source in sources):
        return []
    return [
        {"grid": source.grid and list(source.grid), "names": source.names and list(source.names)} for source in sources
    ]


def restore_sources(header: Manifest) -> list[Source]:
    """Return the sources that a bank's header lists, with the grids and names of :func:`describe_images` if it has any.

    Raises:
        FormatError: A value is missing or of another kind.
        ValueError: They do not fit together.
    """
    plain = [
        Source(source.text("file"), source.integer("rows", 1), source.optional_integer("patches", 1))
        for source in header.tables("sources")
    ]
    if not header.content.get("images"):
        return plain
    restored = []
    for source, told in zip(plain, header.tables("images"), strict=True):
        grid = tuple(told.integers("grid")) if told.content["grid"] is not None else None
        names = tuple(told.texts("names")) if told.content["names"] is not None else None
        if grid is not None and (len(grid) != 2 or grid[0] * grid[1] != source.patches):
            raise ValueError(f"the grid {grid} is not that of {source.patches} patches")
        if names is not None and len(names) != source.images:
            raise ValueError(f"{len(names)} names of {source.images} images")
        restored.append(source._replace(grid=grid, names=names))
    return restored
