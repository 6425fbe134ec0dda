"""Shapes read as rows: which axis of an array counts images, places and values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmad_bank._internal.checks import ArrayLike, as_float_tensor, check_choice, check_finite
from mmad_bank._internal.decoding import decoding
from mmad_bank.bank.dumps.stored import Stored
from mmad_bank.bank.provenance import Source
from mmad_bank.errors import InputError

Layout = Literal["auto", "rows", "bchw", "bhwc"]
_MAPS = ("bchw", "bhwc")


class Expected(NamedTuple):
    """What is known of features from elsewhere; None where nothing is."""

    dim: int | None = None
    grid: tuple[int, int] | None = None


_ANYTHING = Expected()


class Reading(NamedTuple):
    """A shape read: ``images`` and ``patches`` are None where rows are not counted by images."""

    layout: str
    rows: int
    patches: int | None
    dim: int
    grid: tuple[int, int] | None

    @property
    def images(self) -> int:
        """Number of images; 1 where rows are not counted by images."""
        return self.rows // (self.patches or self.rows)

    def fits(self, expected: Expected) -> bool:
        """Whether this is what is known of the features."""
        return expected.dim in (None, self.dim) and (expected.grid is None or expected.grid == self.grid)


@dataclass(frozen=True)
class Part:
    """One array of a dump, seen as rows."""

    source: Source
    dim: int
    fetch: Callable[[int, int], ArrayLike]  # (first row, number of rows) -> rows in the part's own dtype
    resident: bool = False
    """The values are in memory already, in this order."""
    in_memory: bool = False
    """The values are in this process's memory, in whatever order."""
    unit: int = 1
    """Rows that can only be read together: those of an image whose values do not lie place by place."""
    extractor: str | None = None
    image_size: int | None = None
    """Pixels per side of the images that the features are of, if that is known."""
    key: str = ""
    """Key of the array, if its file holds several parts."""

    @property
    def label(self) -> str:
        """The file, and the key if it holds several parts; for messages."""
        return f"{self.source.file}, {self.key}" if self.key else self.source.file

    def read(self, first: int, count: int) -> Tensor:
        """Return rows ``first`` to ``first + count`` as float32."""
        with decoding(self.label, f"cannot read rows from {first} on"):
            rows = self.fetch(first, count)
        return as_float_tensor(rows, self.label)

    def check(self, rows: Tensor, numbers: Callable[[int], int]) -> None:
        """Refuse rows that hold NaN or infinity; file, image and patch are named.

        Args:
            rows: (n, D), read before.
            numbers: Function from a row's place in ``rows`` to its number in the part.
        """
        check_finite(rows, self.label, place=lambda row: self.source.place(numbers(row)))


def check_layout(layout: str) -> None:
    """Refuse a layout that is unknown."""
    check_choice(layout, get_args(Layout), "layout")


def read_layers(
    layers: Sequence[Stored], layout: str = "auto", *, one_image: bool = False, expected: Expected = _ANYTHING
) -> list[Reading]:
    """Read the shapes of an array, or of several whose values are to be joined, in the same way.

    Args:
        layers: The arrays, with their shapes.
        layout: ``"rows"``: (N, D) or (images, patches, D). ``"bchw"``: (B, C, H, W), or (C, H, W) for one image.
            ``"bhwc"``: likewise. ``"auto"``: rows where a shape has two or three axes; with four, the one reading that
            fits what is expected.
        one_image: Whether an array has the values of a single image, so that three axes are not (images, patches, D).
        expected: What is known of the joined features.

    Raises:
        InputError: A shape cannot be read so, or can be read in two ways.
    """
    flat = all(len(layer.shape) == 2 or (len(layer.shape) == 3 and not one_image) for layer in layers)
    if layout == "rows" or (layout == "auto" and flat):
        return [_rows(layer) for layer in layers]
    for layer in layers:
        if len(layer.shape) not in (3, 4):
            rows = "shape (N, D) or (images, patches, D), or maps of four axes"
            raise InputError(
                f"{layer.name}: expected {rows if layout == 'auto' else f'maps ({layout})'}, found {layer.shape}"
            )
    readings = {name: [_maps(layer, name) for layer in layers] for name in (_MAPS if layout == "auto" else (layout,))}
    fitting = [name for name, found in readings.items() if _total(found).fits(expected)]
    if layout != "auto":
        return readings[layout]
    if len(fitting) != 1:
        raise InputError(_ambiguity(layers[0], readings, expected))
    return readings[fitting[0]]


def _rows(layer: Stored) -> Reading:
    """Read (N, D) or (images, patches, D)."""
    shape = layer.shape
    if len(shape) not in (2, 3):
        raise InputError(f"{layer.name}: expected shape (N, D) or (images, patches, D), found {shape}")
    _check_sides(layer)
    return Reading("rows", math.prod(shape[:-1]), shape[1] if len(shape) == 3 else None, shape[-1], None)


def _maps(layer: Stored, layout: str) -> Reading:
    """Read (B, C, H, W) or (B, H, W, C), or of one image without the B."""
    _check_sides(layer)
    images, *rest = (1, *layer.shape) if len(layer.shape) == 3 else layer.shape
    (dim, *grid) = rest if layout == "bchw" else (rest[2], *rest[:2])
    return Reading(layout, images * math.prod(grid), math.prod(grid), dim, (grid[0], grid[1]))


def _check_sides(layer: Stored) -> None:
    if min(layer.shape) < 1:
        raise InputError(f"{layer.name}: expected at least one row and one column, found shape {layer.shape}")


def _total(readings: Sequence[Reading]) -> Reading:
    """Return the reading of layers that are joined: on the largest grid, all values side by side."""
    largest = max(readings, key=lambda one: one.patches or 0)
    grids = [one.grid for one in readings if one.grid is not None]
    if grids:
        grid = (max(grid[0] for grid in grids), max(grid[1] for grid in grids))
        largest = largest._replace(grid=grid, patches=math.prod(grid), rows=largest.images * math.prod(grid))
    return largest._replace(dim=sum(one.dim for one in readings))


def _ambiguity(layer: Stored, readings: dict[str, list[Reading]], expected: Expected) -> str:
    """Return words for both readings of a shape, and for what they should have fitted."""
    ways = []
    for name, found in readings.items():
        grid = found[0].grid or (1, 1)
        ways.append(f"{name} ({found[0].dim} values at {grid[0]} x {grid[1]} places)")
    known = [] if expected.dim is None else [f"vectors of length {expected.dim}"]
    known += [] if expected.grid is None else [f"a grid of {expected.grid[0]} x {expected.grid[1]}"]
    both = all(_total(found).fits(expected) for found in readings.values())
    why = "both fit" if both else "neither fits"
    return (
        f"{layer.name}: shape {layer.shape} can be read as {' or '.join(ways)}; expected a layout that says which"
        f" by layout= (--axes)" + (f": {why} {' and '.join(known)}" if known else "")
    )


def make_part(file: str, layers: Sequence[Stored], readings: Sequence[Reading]) -> Part:
    """Return an array, or the join of several, as rows.

    Layers are brought to the largest grid bilinearly and put side by side, as PatchCore does (Roth et al. 2022, section
    3.1).

    Raises:
        InputError: The layers are not of the same images, or of rows in different numbers.
    """
    total, in_memory = _total(readings), any(layer.in_memory for layer in layers)
    source = Source(file, total.rows, total.patches, total.grid)
    if len(layers) == 1 and total.layout != "bchw":
        layer, dim = layers[0], total.dim

        def fetch(first: int, count: int) -> ArrayLike:
            return layer.values(first * dim, count * dim).reshape(count, dim)

        return Part(source, dim, fetch, layer.resident, in_memory)
    for layer, reading in zip(layers, readings, strict=True):
        if reading.grid is None and (reading.rows, reading.patches) != (total.rows, total.patches):
            raise InputError(
                f"{layer.name}: expected {total.rows} rows as the other layers have, found {reading.rows}; only maps"
                " (four axes, --layout) are brought to one grid"
            )
        if reading.grid is not None and reading.images != total.images:
            raise InputError(
                f"{layer.name}: expected {total.images} images as the other layers have, found {reading.images}"
            )
    if total.grid is None:
        side_by_side = partial(_side_by_side, layers, readings)
        return Part(source, total.dim, side_by_side, in_memory=in_memory)
    maps = _Maps(layers, readings, total)
    return Part(source, total.dim, maps, in_memory=in_memory, unit=math.prod(total.grid))


def _side_by_side(layers: Sequence[Stored], readings: Sequence[Reading], first: int, count: int) -> Tensor:
    columns = []
    for layer, reading in zip(layers, readings, strict=True):
        values = layer.values(first * reading.dim, count * reading.dim)
        columns.append(as_float_tensor(values, layer.name, ndim=1).view(count, reading.dim))
    return torch.cat(columns, dim=1)


@dataclass(frozen=True)
class _Maps:
    """Rows of images that are kept as maps: whole images are read, and the rows taken of them."""

    layers: Sequence[Stored]
    readings: Sequence[Reading]
    total: Reading

    def __call__(self, first: int, count: int) -> Tensor:
        patches = self.total.patches or 1
        low, high = first // patches, -(-(first + count) // patches)
        maps = [self._read(layer, one, low, high) for layer, one in zip(self.layers, self.readings, strict=True)]
        rows = torch.cat(maps, dim=1).flatten(2).transpose(1, 2).reshape(-1, self.total.dim)
        return rows[first - low * patches :][:count]

    def _read(self, layer: Stored, reading: Reading, low: int, high: int) -> Tensor:
        """Return images ``low`` to ``high`` on the common grid, (n, C, H, W) float32."""
        height, width = reading.grid or (1, 1)
        each = reading.dim * height * width
        values = as_float_tensor(layer.values(low * each, (high - low) * each), layer.name, ndim=1)
        if reading.layout == "bchw":
            maps = values.view(-1, reading.dim, height, width)
        else:
            maps = values.view(-1, height, width, reading.dim).permute(0, 3, 1, 2)
        if reading.grid == self.total.grid:
            return maps
        return torch.nn.functional.interpolate(maps, size=self.total.grid, mode="bilinear", align_corners=False)
