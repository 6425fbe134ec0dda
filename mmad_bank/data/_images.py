"""Files of colour images, masks, depth images and organised point clouds, with one line for a bad file."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank._internal.locks import ForkedOpen
from mmad_bank.data._deep import read_deep, read_deep_tiff
from mmad_bank.data._limits import check_announced, limit_is_set
from mmad_bank.data._tiff import read_array
from mmad_bank.errors import InputError, MmadBankError

DESCRIPTION = "Description"
"""PNG's own keyword for what TIFF calls its description."""
# Pillow's names, and its modules. What tells itself by its first bytes, and no rarity that nobody maintains.
_FORMATS = {
    "PNG": "Png", "JPEG": "Jpeg", "BMP": "Bmp", "TIFF": "Tiff", "WEBP": "WebP", "GIF": "Gif", "JPEG2000": "Jpeg2K",
    "PPM": "Ppm", "AVIF": "Avif",
}  # fmt: skip
_PICTURE = "a picture (PNG, JPEG, BMP, TIFF, WebP, GIF, JPEG 2000, PNM, AVIF)"
# Bytes per pixel in Pillow's memory; all other modes take four.
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_DEEP = ("I", "F")
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
_GREYS = ("1", "L", *_DEEP)
# How an open file shows itself in Pillow's messages.
_HANDLE = re.compile(r" <_io\.\w+ name=.*>")
_PILLOWS_LIMIT = ForkedOpen()


@contextmanager
def naming(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one line that names the file.

    Decoders of damaged files raise nearly everything, MemoryError too, since a header may announce any size.
    """
    if not path.is_file():
        raise InputError(f"{path}: {_say_missing(path)}; expected {kind}")
    try:
        yield
    except MmadBankError:
        raise
    except Exception as error:
        words = _HANDLE.sub("", " ".join(str(error).split())).replace(str(path), "the file")
        reason = words or type(error).__name__
        raise InputError(f"{path}: cannot be read as {kind} ({reason[:120]})") from None


def _say_missing(path: Path) -> str:
    """Say that a file is not there, and what is there of its name: perhaps it is of a format that nobody reads."""
    if path.exists():
        return "found something that is no file"
    if not path.parent.is_dir():
        return "file not found"
    others = sorted(other.name for other in path.parent.iterdir() if other.stem == path.stem)
    return "file not found" + (f", only {', '.join(others[:3])}" if others else "")


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """Open an image, its header only, and check what that announces."""
    image_module = import_extra("pillow", "PIL.Image", f"reading {kind}")
    modules = {name: f"PIL.{module}ImagePlugin" for name, module in _FORMATS.items()}
    if importlib.util.find_spec(modules["AVIF"]) is None:  # before Pillow 11.3
        del modules["AVIF"]
    for module in modules.values():
        import_extra("pillow", module, f"reading {kind}")
    # An open file, not a path: Pillow would map raw TIFFs into memory, and mixes up height and width of turned ones.
    with naming(path, kind), path.open("rb") as file, ExitStack() as stack:
        with _without_pillows_limit(image_module):
            image = stack.enter_context(image_module.open(file, formats=tuple(modules)))
        width, height = image.size
        check_announced(path, height, width, _STORED.get(image.mode, 4))
        if limit_is_set():
            stack.enter_context(_without_pillows_limit(image_module))
        yield image


@contextmanager
def _without_pillows_limit(image_module: Any) -> Iterator[None]:
    """Let our limit count: Pillow's warns and raises by the number of pixels alone, and is one for the process."""
    with _PILLOWS_LIMIT:
        limit, image_module.MAX_IMAGE_PIXELS = image_module.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            image_module.MAX_IMAGE_PIXELS = limit


def _depth(image: Any) -> int:
    """Return the bits per channel of an image that is not loaded yet: 8 or fewer, 16 or 32."""
    if image.mode.split(";")[0] in _DEEP:
        return 32 if image.mode in _DEEP else 16
    # Pillow keeps the upper byte of 16-bit colours. Only its decoder's arguments tell, as in "RGB;16B".
    return 16 if any(";16" in str(tile[3]) for tile in image.tile) else 8


def _say_several(path: Path, image: Any) -> None:
    """Say which of several pictures in a file is read; a telephone's (MPO) has previews behind it, if anything."""
    if image.format != "MPO" and getattr(image, "is_animated", False):
        warnings.warn(f"{path}: holds several pictures (pages or frames), of which the first is read", stacklevel=4)


def _turn(image: Any) -> None:
    """Turn and flip an image as its EXIF orientation says, which every viewer does."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)


def _colours(image: Any) -> np.ndarray:
    """Return an image's colours as they are seen on black, (H, W, 3), uint8."""
    _turn(image)
    if not ("transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    # Premultiplied by alpha is what is seen on black: the colours that hide below full transparency do not count.
    return np.ascontiguousarray(np.asarray(image.convert("RGBA").convert("RGBa"))[..., :3])


def read_rgb(path: Path) -> np.ndarray:
    """Read a colour (or grey) image as it is seen.

    It is turned as its EXIF orientation says, transparent parts are black, palettes are looked up, CMYK and YCbCr
    are converted; colour profiles and gamma are left alone. Values of 16 bits are divided by 257, unless that would be
    nearly black or ``MMAD_BANK_PICTURE_BITS`` tells how many bits the camera uses; floats go from 0 to 1.

    Returns:
        (H, W, 3), uint8.

    Warns:
        UserWarning: The file holds several pictures; the first is read.

    Raises:
        InputError: The file is missing, damaged, too large, uses too few of its 16 bits, or is all transparent.
    """
    with _opened(path, _PICTURE) as image:
        _say_several(path, image)
        if _depth(image) <= 8:
            return _seen(path, image)
        if image.format == "TIFF" and image.mode.split(";")[0] not in _DEEP:
            return read_deep_tiff(path)
        _check_black_is_zero(path, image)
        _turn(image)
        return _seen(path, import_extra("pillow", "PIL.Image", "reading pictures").fromarray(read_deep(path, image)))


def _seen(path: Path, image: Any) -> np.ndarray:
    """Return what is seen of an image of 8 bits per channel, (H, W, 3), uint8, if anything is."""
    if "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0):
        raise InputError(f"{path}: expected an image to see, found one that is transparent all over")
    return _colours(image)


def read_mask(path: Path, *, by_index: bool = False) -> np.ndarray:
    """Read a ground-truth mask: what is seen as not black is a defect.

    Grey masks may have any depth, and floats; NaN is no defect. In a JPEG and its successors, whose black is never
    quite black, the brighter half of the range is a defect.

    Args:
        path: The file.
        by_index: Whether an index into a palette marks a defect by not being zero, whatever its color.

    Returns:
        (H, W), bool.

    Raises:
        InputError: The file is missing, damaged, too large, or of 16 bits per colour channel.
    """
    with _opened(path, "a mask image") as image:
        if by_index and image.mode == "P":
            _turn(image)
            return np.asarray(image) != 0
        if image.mode.split(";")[0] in _GREYS and "transparency" not in image.info:
            _check_black_is_zero(path, image)
            _turn(image)
            values = np.asarray(image)
        else:
            if _depth(image) > 8:
                raise InputError(f"{path}: expected a mask of 8 bits per channel or grey, found 16 bits per channel")
            values = _colours(image).max(axis=-1)
        return values >= 128 if image.format in _LOSSY else is_defect(values)


def read_depth(path: Path) -> np.ndarray:
    """Read a 16-bit grey image.

    Returns:
        (H, W), float64, from 0 to 65535.

    Raises:
        InputError: The file is missing, damaged, too large, or of another depth.
    """
    with _opened(path, "a 16-bit depth image") as image:
        if not image.mode.startswith("I"):
            raise InputError(f"{path}: expected a 16-bit grey image, found image mode {image.mode}")
        _check_black_is_zero(path, image)
        _turn(image)
        depth = np.asarray(image).astype(np.float64)
    if depth.min() < 0 or depth.max() > 65535:
        raise InputError(f"{path}: expected 16 bits, 0 to 65535, found {depth.min():.0f} to {depth.max():.0f}")
    return depth


def _check_black_is_zero(path: Path, image: Any) -> None:
    """Refuse the deep TIFFs whose white is zero: Pillow inverts those of 8 bits, and leaves these as they are."""
    if image.mode.split(";")[0] in _DEEP and getattr(image, "tag_v2", {}).get(262) == 0:
        raise InputError(f"{path}: expected a TIFF whose black is zero, found one whose white is (WhiteIsZero)")


def read_xyz(path: Path) -> np.ndarray:
    """Read an organised point cloud from a TIFF file; points with a NaN or infinite component become zero.

    Returns:
        (H, W, 3), float32, in the file's unit and the sensor's frame; zeros where nothing was measured.

    Raises:
        InputError: The file is missing, damaged, too large, or holds something else.
    """
    tifffile = import_extra("tifffile", "tifffile", "reading point clouds")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our line says what is wrong, tifffile's need not
    with naming(path, "a TIFF of H×W×3 floats"):
        with tifffile.TiffFile(path) as file:
            values = read_array(file, path)
        if values.ndim != 3 or values.shape[-1] != 3 or values.dtype.kind != "f":
            raise InputError(f"{path}: expected H×W×3 floats, found shape {values.shape}, {values.dtype}")
        return finite_points(values, axis=-1)


def finite_points(values: np.ndarray, axis: int) -> np.ndarray:
    """Return points as float32 in memory of their own; those with a NaN or infinite component become zero.

    A float64 beyond float32's range becomes infinite, and with that unmeasured, like any other infinity.
    """
    with np.errstate(over="ignore"):
        points = values.astype(np.float32, order="C")
    unmeasured = ~np.isfinite(points).all(axis=axis, keepdims=True)
    return np.where(unmeasured, np.float32(0), points) if unmeasured.any() else points


def is_defect(values: np.ndarray) -> np.ndarray:
    """Say where a mask's values mark a defect, in memory of its own: neither zero nor NaN."""
    marked = np.array(values != 0)
    return marked & ~np.isnan(values) if values.dtype.kind == "f" else marked


def read_tag(path: Path) -> str:
    """Read a TIFF's or PNG's description; empty if there is none or the file cannot be read."""
    if path.suffix.lower() == ".png":
        return _read_png_tag(path)
    tifffile = import_extra("tifffile", "tifffile", "reading point clouds")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            return str(file.pages[0].description)
    except Exception:  # as in naming: whatever a decoder raises, there is no tag to be had
        return ""


def _read_png_tag(path: Path) -> str:
    try:
        with _opened(path, "an image") as image:
            return str(image.info.get(DESCRIPTION, ""))
    except InputError:
        return ""
