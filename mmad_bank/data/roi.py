"""Regions of interest: the part of every picture that counts, as a mask's picture or as polygons."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.extras import import_extra
from mmad_bank.data._images import read_mask
from mmad_bank.data._limits import MAX_PIXELS
from mmad_bank.data.frame import Frame
from mmad_bank.errors import InputError

Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) in pixels."""
_MOST_CORNERS = 100_000
_LARGEST = 1e6  # pixels from the corner of a picture
_ASPECT = 0.02  # share by which a picture's shape may differ from that of the region's


@dataclass(frozen=True, eq=False)
class RegionOfInterest:
    """Part of the pictures that counts, the same for all pictures of a camera.

    A mask is scaled to a picture of another size but of its shape. Polygons are in the pixels of every picture, or,
    with a size, of one picture to which others are scaled in the same way.

    Attributes:
        mask: (H, W) bool, True inside; None for polygons.
        polygons: Their corners; inside is what lies in any of them.
        size: (height, width) of the picture that the polygons were drawn in; None for the pixels of every picture.

    Example:
        >>> region = RegionOfInterest(polygons=(((2, 1), (5, 1), (5, 3), (2, 3)),))
        >>> region.inside(5, 8).int()
        tensor([[0, 0, 0, 0, 0, 0, 0, 0],
                [0, 0, 1, 1, 1, 1, 0, 0],
                [0, 0, 1, 1, 1, 1, 0, 0],
                [0, 0, 1, 1, 1, 1, 0, 0],
                [0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    """

    mask: np.ndarray | None = None
    polygons: tuple[Polygon, ...] = ()
    size: tuple[int, int] | None = None
    _cells: dict[tuple[Frame, tuple[int, int]], Tensor] = field(default_factory=dict, repr=False)

    def inside(self, height: int, width: int) -> Tensor:
        """Say which pixels of a picture lie inside, (height, width) bool.

        Raises:
            InputError: The picture has another shape than the region's, or no pixel of it lies inside.
        """
        own = self.size if self.mask is None else self.mask.shape
        if own is not None and abs(own[0] * width / (own[1] * height) - 1) > _ASPECT:
            shape = f"of the shape of {own[1]}×{own[0]} pixels"
            raise InputError(f"region of interest: expected a picture {shape}, found {width}×{height}")
        found = self._drawn(height, width) if self.mask is None else _scaled(self.mask, height, width)
        if not found.any():
            raise InputError(f"region of interest: no pixel of a picture of {width}×{height} lies inside")
        return torch.from_numpy(found)

    def cells(self, frame: Frame, grid: tuple[int, int]) -> Tensor:
        """Say which patches of a grid (h, w) over the prepared square lie inside, at least in part, (h, w) bool.

        Raises:
            InputError: As :meth:`inside`.
        """
        known = self._cells.get((frame, grid))
        if known is None:
            known = _covered(self.inside(*frame.picture).numpy(), frame, grid)
            if len(self._cells) < 256:  # pictures of one camera have one size
                self._cells[frame, grid] = known
        return known

    def in_words(self) -> str:
        """Describe it in a line.

        Example:
            >>> RegionOfInterest(mask=np.eye(4, dtype=bool)).in_words()
            'a mask of 4×4 pixels, 25 % inside'
        """
        if self.mask is not None:
            height, width = self.mask.shape
            return f"a mask of {width}×{height} pixels, {self.mask.mean():.0%} inside".replace("%", " %")
        corners = " and ".join(f"a polygon of {len(one)} corners" for one in self.polygons[:3])
        more = f" and {len(self.polygons) - 3} more" if len(self.polygons) > 3 else ""
        return corners + more + ("" if self.size is None else f" in a picture of {self.size[1]}×{self.size[0]} pixels")

    def as_json(self) -> dict[str, Any]:
        """Return JSON-able values, see :meth:`from_json`."""
        if self.mask is None:
            return {"polygons": self.polygons, "size": self.size}
        packed = zlib.compress(np.packbits(self.mask).tobytes(), 9)
        return {"mask": base64.b64encode(packed).decode(), "size": self.mask.shape}

    @classmethod
    def from_json(cls, content: Any) -> RegionOfInterest:
        """Return what :meth:`as_json` gave.

        Raises:
            ValueError: It is something else.
        """
        size = None if content["size"] is None else _size(content["size"])
        if "mask" not in content:
            return cls(polygons=_polygons(content["polygons"]), size=size)
        if size is None or math.prod(size) > MAX_PIXELS:
            raise ValueError(f"a region of interest of {size} pixels")
        n_bytes, inflater = -(-math.prod(size) // 8), zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(content["mask"], validate=True), n_bytes)
        if len(data) != n_bytes:
            raise ValueError("a region of interest that is cut off")
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=math.prod(size))
        return cls(mask=bits.reshape(size).astype(bool))

    def _drawn(self, height: int, width: int) -> np.ndarray:
        """Draw the polygons into a picture of a size; their borders are inside."""
        drawing, pictures = (
            import_extra("pillow", f"PIL.{name}", "drawing polygons") for name in ("ImageDraw", "Image")
        )
        rows, columns = (1.0, 1.0) if self.size is None else (height / self.size[0], width / self.size[1])
        picture = pictures.new("L", (width, height))
        for corners in self.polygons:
            # Corners are centers of pixels, which move as :func:`_scaled` moves them.
            places = [((x + 0.5) * columns - 0.5, (y + 0.5) * rows - 0.5) for x, y in corners]
            drawing.Draw(picture).polygon(places, fill=1, outline=1)
        return np.asarray(picture) > 0


def read_region(path: str | Path) -> RegionOfInterest:
    """Read a region of interest.

    Args:
        path: A picture whose pixels that are not black lie inside (of the size of the pictures, or scaled to it), or a
            JSON file: corners ``[[x, y], ...]`` of a polygon in pixels, a list of such polygons, or an object with
            ``"polygons"`` and the ``"size"`` ``[width, height]`` of the picture that they were drawn in.

    Raises:
        InputError: The file is missing or holds something else, or nothing lies inside.

    Example:
        >>> read_region("lens.png").inside(480, 640).float().mean()  # doctest: +SKIP
        tensor(0.4127)
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        mask = read_mask(path)
        if not mask.any():
            raise InputError(f"{path}: expected a region of interest, pixels that are not black, found none")
        return RegionOfInterest(mask=mask)
    expected = "expected corners of a polygon [[x, y], [x, y], [x, y], ...], in pixels"
    if not path.is_file():
        raise InputError(f"{path}: file not found; {expected}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        size = None
        if isinstance(content, dict):
            if "polygons" not in content:
                raise ValueError("an object without 'polygons'")
            given, content = content.get("size"), content["polygons"]
            size = None if given is None else _size(given)[::-1]  # people say width first
        if isinstance(content, list) and content and _is_corner(content[0]):
            content = [content]
        return RegionOfInterest(polygons=_polygons(content), size=size)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: {expected}, found something else ({error})") from None


def as_region(given: str | Path | RegionOfInterest | None) -> RegionOfInterest | None:
    """Return a region that is given as such or by its file; None for none."""
    return given if given is None or isinstance(given, RegionOfInterest) else read_region(given)


def _is_corner(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(isinstance(one, (int, float)) for one in value)


def _polygons(content: Any) -> tuple[Polygon, ...]:
    """Return polygons, checked.

    Raises:
        ValueError: They are something else.
    """
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise ValueError("no list of polygons")
    for corners in content:
        if not isinstance(corners, Sequence) or len(corners) < 3 or not all(map(_is_corner, corners)):
            raise ValueError("a polygon that is no list of at least three corners [x, y]")
    found = tuple(tuple((float(x), float(y)) for x, y in corners) for corners in content)
    if sum(map(len, found)) > _MOST_CORNERS or not all(abs(v) <= _LARGEST for one in found for xy in one for v in xy):
        raise ValueError("corners that are no pixels")
    return found


def _size(content: Any) -> tuple[int, int]:
    if not _is_corner(content) or not all(isinstance(n, int) and 1 <= n <= 2**16 for n in content):
        raise ValueError(f"size {content!r}")
    return int(content[0]), int(content[1])


def _scaled(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring a mask to a size; a pixel takes the one under its center."""
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return mask[rows[:, None], columns]


def _covered(inside: np.ndarray, frame: Frame, grid: tuple[int, int]) -> Tensor:
    """Say which cells of a grid over the prepared square overlap with pixels inside."""
    rows = np.zeros((grid[0], inside.shape[1]), bool)
    for row in range(grid[0]):
        top, _, bottom, _ = frame.box((row, 0), grid)
        rows[row] = inside[top:bottom].any(axis=0)
    cells = np.zeros(grid, bool)
    for column in range(grid[1]):
        _, left, _, right = frame.box((0, column), grid)
        cells[:, column] = rows[:, left:right].any(axis=1)
    return torch.from_numpy(cells)
