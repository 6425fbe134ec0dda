"""Where the pixels of a prepared sample lie in the picture that it was made of."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from mmad_bank.errors import InputError

_LONGEST = 2**16  # pixels per side
_LARGEST = 2**28  # pixels of a picture; a frame comes from a file, and a map of its size is made


@dataclass(frozen=True)
class Frame:
    """The way from a picture to the prepared square, and back: put into the middle of a square, and resized.

    A picture's pixel (y, x) lies at (y + top, x + left) in a square of ``side`` pixels, which was resized to ``size``
    pixels per side. Pixels have their centres at halves, as in ``torch.nn.functional.interpolate`` with
    ``align_corners=False``.

    Attributes:
        height: Height of the picture, in pixels.
        width: Width of the picture, in pixels.
        top: Rows of padding above it.
        left: Columns of padding before it.
        side: Side of the padded square in pixels, before it is resized.
        size: Side of the prepared square, in pixels.

    Raises:
        InputError: The picture does not lie in the square, or none of its pixels is left in the prepared one.

    Example:
        >>> frame = Frame.centred((400, 900), 900, 224)
        >>> frame.top, frame.rows, frame.columns
        (250, slice(62, 162, None), slice(0, 224, None))
        >>> frame.to_picture(torch.zeros(224, 224)).shape
        torch.Size([400, 900])
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    size: int

    def __post_init__(self) -> None:
        for name, length, before in (("height", self.height, self.top), ("width", self.width, self.left)):
            if not (1 <= length <= self.side <= _LONGEST and 0 <= before <= self.side - length):
                raise InputError(
                    f"frame: expected a picture inside its square of {self.side} pixels, found {name} {length} behind"
                    f" {before}"
                )
        if not 1 <= self.size <= _LONGEST or self.height * self.width > _LARGEST:
            found = f"{self.height}×{self.width} prepared to {self.size}"
            raise InputError(f"frame: expected a picture of up to 2²⁸ pixels, found {found}")
        if self.rows.start >= self.rows.stop or self.columns.start >= self.columns.stop:
            raise InputError(
                f"frame: nothing is left of a picture of {self.height}×{self.width} in a square of {self.side} pixels"
                f" resized to {self.size}"
            )

    @classmethod
    def centred(cls, picture: tuple[int, int], side: int, size: int | None = None) -> Frame:
        """Make the frame of a picture (height, width) in the middle of a square, resized to ``size`` unless None."""
        top, left = ((side - length) // 2 for length in picture)
        return cls(picture[0], picture[1], top, left, side, side if size is None else size)

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.height, self.width

    @property
    def rows(self) -> slice:
        """Rows of the prepared square that show the picture; the others are padding."""
        return _shown(self.top, self.height, self.side, self.size)

    @property
    def columns(self) -> slice:
        """Columns of the prepared square that show the picture."""
        return _shown(self.left, self.width, self.side, self.size)

    def cells(self, grid: tuple[int, int]) -> tuple[slice, slice]:
        """Return rows and columns of a grid (h, w) of patches whose patches lie in the picture, at least in part.

        Example:
            >>> Frame.centred((400, 900), 900, 224).cells((28, 28))
            (slice(7, 21, None), slice(0, 28, None))
        """
        return (
            _covered(self.top, self.height, self.side, grid[0]),
            _covered(self.left, self.width, self.side, grid[1]),
        )

    def to_picture(self, maps: Tensor) -> Tensor:
        """Bring maps from the prepared square to the picture, bilinearly: (..., size, size) to (..., height, width).

        Padding takes no part: behind the outermost pixels that show the picture these are repeated. Nothing is
        smoothed.

        Raises:
            InputError: The maps have another size.
        """
        if maps.shape[-2:] != (self.size, self.size):
            found = "×".join(map(str, maps.shape[-2:]))
            raise InputError(f"maps: expected {self.size}×{self.size} pixels as the frame has, found {found}")
        rows = _resampled(maps, self._places(self.height, self.top, self.rows))
        return _resampled(rows.transpose(-1, -2), self._places(self.width, self.left, self.columns)).transpose(-1, -2)

    def nearest_to_picture(self, values: Tensor) -> Tensor:
        """Do the same with values that cannot be averaged, such as masks and points: each pixel takes the nearest."""
        rows = self._places(self.height, self.top, self.rows).round().long()
        columns = self._places(self.width, self.left, self.columns).round().long()
        return values.index_select(-2, rows.to(values.device)).index_select(-1, columns.to(values.device))

    def _places(self, length: int, before: int, shown: slice) -> Tensor:
        """Return where in the prepared square the centres of a side's pixels lie, between those of the pixels shown."""
        # float64: the same places on every machine, and exactly whole ones where nothing was resized.
        centres = (torch.arange(length, dtype=torch.float64) + before + 0.5) * self.size / self.side - 0.5
        return centres.clamp(shown.start, shown.stop - 1)

    def box(self, place: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the picture's pixels that a patch covers: (top, left, bottom, right), the last two not included.

        Args:
            place: (row, column) of the patch.
            grid: (h, w) of the patches.

        Returns:
            An empty box on the picture's border for a patch of padding.

        Example:
            >>> Frame.centred((400, 900), 900, 224).box((14, 0), (28, 28))
            (200, 0, 233, 33)
        """
        top, bottom = _span(place[0], grid[0], self.top, self.height, self.side)
        left, right = _span(place[1], grid[1], self.left, self.width, self.side)
        return top, left, bottom, right

    def as_text(self) -> str:
        """Return the six numbers for a file's description, see :meth:`from_text`."""
        return " ".join(map(str, astuple(self)))

    @classmethod
    def from_text(cls, text: str) -> Frame:
        """Read what :meth:`as_text` gave.

        Raises:
            InputError: It is something else.

        Example:
            >>> Frame.from_text(Frame.centred((400, 900), 900, 224).as_text()).picture
            (400, 900)
        """
        words = text.split()
        if len(words) != 6 or not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
            raise InputError(f"frame: expected six numbers, found {text[:60]!r}")
        return cls(*map(int, words))


def picture_of(values: Tensor, frame: Frame | None) -> Tensor:
    """Cut what shows the picture out of maps (..., size, size) of the prepared square; all of it without a frame.

    Example:
        >>> picture_of(torch.zeros(224, 224), Frame.centred((400, 900), 900, 224)).shape
        torch.Size([100, 224])
    """
    return values if frame is None else values[..., frame.rows, frame.columns]


def nearest_places(length: int, size: int) -> Tensor:
    """Return for each of ``size`` pixels the one of ``length`` that its centre falls on, (size,) int64."""
    return ((torch.arange(size, dtype=torch.float64) + 0.5) * length / size).long()


def _shown(before: int, length: int, side: int, size: int) -> slice:
    """Return which of ``size`` pixels take their values from the picture, as :func:`nearest_places` says."""
    places = nearest_places(side, size)
    first, last = (int((places < bound).sum()) for bound in (before, before + length))
    return slice(first, last)


def _covered(before: int, length: int, side: int, cells: int) -> slice:
    """Return which of ``cells`` cells along a side overlap with the picture."""
    return slice(before * cells // side, -(-(before + length) * cells // side))


def _span(cell: int, cells: int, before: int, length: int, side: int) -> tuple[int, int]:
    """Return the first and the last but one of the picture's pixels that a cell overlaps with."""
    first, last = cell * side // cells - before, -(-(cell + 1) * side // cells) - before
    return min(max(first, 0), length), min(max(last, 0), length)


def _resampled(maps: Tensor, places: Tensor) -> Tensor:
    """Take rows of maps (..., n, W) at places (m,) between them, linearly: (..., m, W)."""
    above = places.floor().long()
    share = (places - above)[:, None].to(maps)
    below = (above + 1).clamp(max=maps.shape[-2] - 1)
    upper, lower = (maps.index_select(-2, rows.to(maps.device)) for rows in (above, below))
    return upper * (1 - share) + lower * share
