"""Pictures of samples and of what a method says of them, as (H, W, 3) uint8 arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank.data.sample import Sample
from mmad_bank.errors import MissingExtraError

if TYPE_CHECKING:
    from mmad_bank.methods.base import Method, Prediction

UNMEASURED = (229, 231, 235)
"""Colour of pixels without a point."""
OUTLINE = (34, 211, 238)
"""Colour of a defect's outline."""
MAP_COLOURS, DEPTH_COLOURS = "inferno", "viridis"
_DEPTH_PARTS = ("xyz", "depth", "point", "shape", "geometry", "3d")
_CROP = 0.22  # side of a patch's crop, in sides of the image
_ROWS_AT_ONCE = 256
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_PALE = 0.6  # share of grey in the picture below a map, whose colours are to be told from its own
_MOST_OPAQUE = 0.55  # a defect can still be seen below the highest score


def colour_map(name: str) -> Any:
    """Return one of matplotlib's colour maps.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
    except ImportError as error:
        raise MissingExtraError("matplotlib", "multimodal", "drawing pictures") from error
    return colormaps[name]


def _coloured(values: np.ndarray, name: str) -> np.ndarray:
    """Return values in [0, 1] as colours."""
    return np.asarray(colour_map(name)(values)[..., :3] * 255)


def map_colours(levels: np.ndarray) -> np.ndarray:
    """Return the colours (..., 3) of a map's levels in [0, 1], from 0 to 255; none looks like a shadow."""
    return _coloured(0.25 + 0.75 * levels, MAP_COLOURS)


def rgb_picture(sample: Sample) -> np.ndarray:
    """Return the colour image."""
    return (sample.rgb.permute(1, 2, 0).numpy() * 255).round().clip(0, 255).astype(np.uint8)


def depth_picture(sample: Sample) -> np.ndarray:
    """Return the depth: near is light, far is dark, slopes are shaded, what was not measured is grey."""
    measured = sample.measured.numpy()
    picture = np.full((*measured.shape, 3), UNMEASURED, dtype=np.float64)
    if not measured.any():
        return picture.astype(np.uint8)
    depth = sample.xyz[2].numpy().astype(np.float64)
    near, far = np.percentile(depth[measured], (2, 99.5))
    height = np.clip((far - depth) / max(far - near, 1e-9), 0, 1)
    filled = np.where(measured, height, np.median(height[measured]))
    along_y, along_x = np.gradient(filled)
    shade = 1 + np.clip((along_y + along_x) * -3.5, -0.3, 0.18)
    coloured = _coloured(0.08 + 0.87 * height, DEPTH_COLOURS) * shade[..., None]
    picture[measured] = coloured[measured]
    return picture.round().clip(0, 255).astype(np.uint8)


def map_limits(method: Method | None, predictions: Sequence[Prediction]) -> tuple[float, float]:
    """Return the scores of the first and last colour for maps: the model's scale, one for all its pictures.

    Without it (a model of an older version) the first is the median over the objects of what is shown, the last its
    maximum.
    """
    if method is not None and method.map_scale_ is not None:
        return method.map_scale_.limits()
    if not predictions:
        return 0.0, 1.0
    on_objects = torch.cat([one.prepared_map[one.sample.measured] for one in predictions])
    return float(on_objects.median()), max(float(one.prepared_map.max()) for one in predictions)


def overlay(picture: np.ndarray, scores: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Lay an anomaly map over the paler picture: nothing up to the first colour, and half transparent at the last.

    Args:
        picture: The colour image (H, W, 3).
        scores: The map (H, W).
        limits: The scores of the first and last colour.
    """
    low, high = limits
    levels = np.linspace(0, 1, 256)
    opacity = (_MOST_OPAQUE * levels**0.7).astype(np.float32)[:, None]
    colours = map_colours(levels).astype(np.float32)
    result = np.empty_like(picture)
    for first in range(0, len(picture), _ROWS_AT_ONCE):  # a picture of 12 megapixels takes 0.3 GB as float64
        rows = slice(first, first + _ROWS_AT_ONCE)
        place = np.clip((scores[rows] - low) / max(high - low, 1e-12) * 255, 0, 255).round().astype(np.uint8)
        own = picture[rows].astype(np.float32)
        own += _PALE * ((own @ _GREY)[..., None] - own)
        result[rows] = (own + opacity[place] * (colours[place] - own)).round().clip(0, 255).astype(np.uint8)
    return result


def outlined(picture: np.ndarray, mask: Tensor | None, colour: tuple[int, int, int] = OUTLINE) -> np.ndarray:
    """Return the picture with the outline of a mask drawn around it, a dark rim outside keeps it visible."""
    if mask is None or not bool(mask.any()):
        return picture
    result = picture.copy()
    grown = _grown(mask)
    result[(_grown(grown) & ~grown).numpy()] = (result[(_grown(grown) & ~grown).numpy()] * 0.35).astype(np.uint8)
    result[(grown & ~mask.bool()).numpy()] = colour
    return result


def _grown(mask: Tensor) -> Tensor:
    """Return the mask one pixel larger on all sides."""
    return torch.nn.functional.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the picture (H, W, 3) with at most ``side`` pixels on its longer side."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(_image_module().fromarray(picture).resize(size, _image_module().Resampling.BOX))


def shrunk_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mask (H, W) in another size; what is small in it stays."""
    return torch.nn.functional.adaptive_max_pool2d(mask[None].float(), size)[0] > 0


def shrunk_map(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the map (H, W) in another size, float32: the means of its areas."""
    return torch.nn.functional.adaptive_avg_pool2d(scores[None].float(), size)[0].numpy()


def shown(sample: Sample) -> tuple[slice, slice]:
    """Return rows and columns of a prepared sample that show its picture; the others are padding."""
    if sample.frame is None:
        return slice(0, sample.size[0]), slice(0, sample.size[1])
    return sample.frame.rows, sample.frame.columns


def has_depth(sample: Sample) -> bool:
    """Say whether there is a depth to show: a cloud that is not all in one plane before the camera."""
    depth = sample.xyz[2][sample.measured]
    return bool(len(depth)) and bool(depth.max() > depth.min())


def shows_depth(part: str, sample: Sample) -> bool:
    """Say whether a method's part looks at the cloud, as far as its name tells, and the sample has a depth to show."""
    return any(word in part.lower() for word in _DEPTH_PARTS) and has_depth(sample)


def patch_crop(sample: Sample, place: tuple[int, int], grid: tuple[int, int], depth: bool = False) -> np.ndarray:
    """Return the surroundings of a patch, as a square of the colour image or of the depth."""
    side = crop_side(sample.size)
    top, left = crop_box(place, grid, sample.size, side)
    picture = depth_picture(sample) if depth else rgb_picture(sample)
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def crop_side(size: tuple[int, int]) -> int:
    """Return the side of a patch's crop in an image of a size (h, w).

    Example:
        >>> crop_side((224, 224))
        49
    """
    return max(8, round(_CROP * min(size)))


def crop_box(place: tuple[int, int], grid: tuple[int, int], size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the top left corner of a crop around a patch, moved to lie inside the image.

    Example:
        >>> crop_box((0, 27), (28, 28), (224, 224), 48)
        (0, 176)
    """
    corners = []
    for at, cells, pixels in zip(place, grid, size, strict=True):
        centre = (at + 0.5) * pixels / cells
        corners.append(int(np.clip(round(centre - side / 2), 0, max(pixels - side, 0))))
    return corners[0], corners[1]


def encoded(picture: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Return the picture as an image file's bytes."""
    file = io.BytesIO()
    _image_module().fromarray(picture).save(file, format=kind, **options)
    return file.getvalue()


def _image_module() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "multimodal", "drawing pictures") from error
    return Image
