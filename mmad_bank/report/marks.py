"""What a person should see on a picture at once: the outlines of its regions, their numbers, the region of interest.

Outlines are white with a dark rim, and labels white on black, so that both can be seen on light and on dark pictures.
They lie outside of a region and hide nothing of it, but for a line along the picture's border, if it reaches that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.extras import import_extra
from mmad_bank.methods.base import Prediction
from mmad_bank.report import pictures

LABELLED = 9
"""Number of regions that get a label; of more, the others have outlines alone."""
SIDE = 800
"""Pixels of the longer side up to which a small picture is enlarged, by a whole number."""
_LIGHT, _DARK, _WASH = (255, 255, 255), (17, 17, 17), 128.0
_WASHED = 0.55  # share of gray outside of the region of interest
_PER_LINE = 320  # pixels of the longer side per pixel of a line's width
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Marks:
    """What is drawn on a picture.

    Attributes:
        numbers: (H, W) integers, the number of the region that a pixel belongs to, 0 for none.
        words: Labels of the regions, the first of number 1; none for outlines alone.
        inside: (H, W) bool, the region of interest; None for all of the picture.
    """

    numbers: Tensor
    words: Sequence[str] = ()
    inside: Tensor | None = None

    @classmethod
    def of(cls, prediction: Prediction, words: Sequence[str] = ()) -> Marks:
        """Return the marks of a prediction, in the picture's pixels."""
        roi = prediction.roi
        return cls(prediction.region_map, words, None if roi is None else roi.inside(*prediction.size))

    def resized(self, size: tuple[int, int]) -> Marks:
        """Return the same for a picture of another size (H, W); what is small stays."""
        inside = None if self.inside is None else pictures.shrunk_mask(self.inside, size)
        if tuple(self.numbers.shape) == size:
            return Marks(self.numbers, self.words, inside)
        numbers = torch.nn.functional.adaptive_max_pool2d(self.numbers[None].float(), size)[0].int()
        return Marks(numbers, self.words, inside)


def annotated(
    picture: np.ndarray, scores: np.ndarray, limits: tuple[float, float], marks: Marks, *, per_text: int = 50
) -> np.ndarray:
    """Return a picture with its anomaly map and marks on it; a small one is enlarged by a whole number.

    Args:
        picture: (H, W, 3) uint8.
        scores: The map (H, W).
        limits: The scores of the first and last color.
        marks: What is drawn.
        per_text: Pixels of the longer side per pixel of the letters' height.
    """
    factor = max(1, SIDE // max(picture.shape[:2]))
    over = enlarged(pictures.overlay(picture, scores, limits), factor)
    inside = None if marks.inside is None else torch.from_numpy(enlarged(marks.inside.numpy(), factor))
    numbers = torch.from_numpy(enlarged(marks.numbers.numpy(), factor))
    return drawn(over, Marks(numbers, marks.words, inside), per_text=per_text)


def enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    """Return pixels (H, W, ...) that are each repeated along both sides."""
    return values if factor == 1 else values.repeat(factor, 0).repeat(factor, 1)


def drawn(picture: np.ndarray, marks: Marks, *, per_text: int = 50) -> np.ndarray:
    """Return a picture (H, W, 3) with marks of the same size drawn on it.

    Example:
        >>> numbers = torch.zeros(9, 9, dtype=torch.int32)
        >>> numbers[4, 4] = 1
        >>> drawn(np.zeros((9, 9, 3), np.uint8), Marks(numbers))[4, :, 0]
        array([  0,   0,  17, 255,   0, 255,  17,   0,   0], dtype=uint8)
    """
    result, longer = picture.copy(), max(picture.shape[:2])
    width = max(1, round(longer / _PER_LINE))
    if marks.inside is not None:
        _wash(result, marks.inside.numpy(), max(1, width // 2))
    numbers = marks.numbers.numpy()
    if not numbers.any():
        return result
    found, rim = numbers > 0, max(1, width // 2)
    line = _grown(found, width)
    result[_grown(line, rim) & ~line] = _DARK
    result[found & _border(found.shape, width + rim)] = _DARK
    result[(line & ~found) | (found & _border(found.shape, width))] = _LIGHT
    return _labelled(result, numbers, marks.words, width, max(11, round(longer / per_text)))


def _wash(picture: np.ndarray, inside: np.ndarray, width: int) -> None:
    """Take the contrast from what lies outside, and draw a line at the border."""
    outside = ~inside
    picture[outside] = (picture[outside] * (1 - _WASHED) + _WASH * _WASHED).astype(np.uint8)
    if outside.any():
        line = _grown(inside, width) & outside
        picture[line] = picture[line] // 2 + 128  # fainter than a region's


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Return a mask that is some pixels larger on all sides."""
    ndimage = import_extra("scipy", "scipy.ndimage", "drawing regions")
    return np.asarray(ndimage.maximum_filter(mask, 2 * by + 1, mode="constant", cval=False))


def _border(size: tuple[int, ...], width: int) -> np.ndarray:
    """Say which pixels (H, W) lie at the picture's border, where there is no room for a line outside of a region."""
    found = np.ones(size, bool)
    found[width : size[0] - width, width : size[1] - width] = False
    return found


def _labelled(picture: np.ndarray, numbers: np.ndarray, words: Sequence[str], width: int, height: int) -> np.ndarray:
    """Write the labels beside the regions, in letters of a height."""
    if not words:
        return picture
    ndimage = import_extra("scipy", "scipy.ndimage", "drawing regions")
    drawing, images = (import_extra("pillow", f"PIL.{name}", "drawing pictures") for name in ("ImageDraw", "Image"))
    image, font = images.fromarray(picture), _font(height)
    draw = drawing.Draw(image)
    boxes = [
        None if place is None else (place[1].start, place[0].start, place[1].stop, place[0].stop)
        for place in ndimage.find_objects(numbers)
    ]
    taken = [box for box in boxes if box is not None]
    for box, word in zip(boxes[:LABELLED], words[:LABELLED], strict=False):
        if box is None:
            continue  # too small for this size
        left, top, right, bottom = draw.textbbox((0, 0), word, font=font)
        pad = max(2, height // 5)
        size = (right - left + 2 * pad, bottom - top + 2 * pad)
        place = _place(box, size, taken, (image.width, image.height), 2 * width)
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=_DARK)
        draw.text((place[0] + pad - left, place[1] + pad - top), word, font=font, fill=_LIGHT)
        taken.append(place)
    return np.asarray(image)


def _place(region: Box, size: tuple[int, int], taken: Sequence[Box], whole: tuple[int, int], gap: int) -> Box:
    """Find a place for a label beside a region that covers no region and no other label, if there is one.

    Args:
        region: (left, top, right, bottom) of the region.
        size: Width and height of the label.
        taken: Boxes that it should not cover.
        whole: Width and height of the picture.
        gap: Pixels between the region and the label.
    """
    left, top, right, bottom = region
    across, down = size
    corners = [
        (x, y)
        for y in (top - gap - down, bottom + gap) for x in (left, right - across, left - gap - across, right + gap)
    ] + [(x, y) for x in (right + gap, left - gap - across) for y in (top, bottom - down)]  # fmt: skip
    places = []
    for corner in corners:
        x, y = (max(0, min(at, end - own)) for at, end, own in zip(corner, whole, size, strict=True))
        places.append((x, y, x + across, y + down))
    return min(places, key=lambda place: sum(_common(place, other) for other in taken))


def _common(one: Box, other: Box) -> int:
    """Return the number of pixels that two boxes have in common."""
    sides = (min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1]))
    return max(0, sides[0]) * max(0, sides[1])


@lru_cache(maxsize=8)
def _font(height: int) -> Any:
    """Return the letters that come with matplotlib."""
    fonts = import_extra("pillow", "PIL.ImageFont", "drawing pictures")
    matplotlib = import_extra("matplotlib", "matplotlib", "drawing pictures")
    return fonts.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"), height)
