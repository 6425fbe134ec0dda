"""Files of colour images, masks, depth images and organised point clouds, with one line for a bad file."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._files import replacing
from mmad_bank.errors import InputError, MissingExtraError

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
# What decoders raise on damaged files. MemoryError is among them: a damaged header may announce any size.
_DAMAGE = (OSError, ValueError, SyntaxError, KeyError, IndexError, TypeError, EOFError, MemoryError, zlib.error)


def import_extra(package: str, module: str, purpose: str) -> Any:
    """Import a module of the extra ``multimodal``, or say which extra brings it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "multimodal", purpose) from error


@contextmanager
def _naming(path: Path, kind: str) -> Iterator[None]:
    """Turn what a decoder raises into one line that names the file."""
    if not path.is_file():
        raise InputError(f"{path}: file not found; expected {kind}")
    try:
        yield
    except (InputError, MissingExtraError):
        raise
    except (*_DAMAGE, struct.error) as error:
        reason = " ".join(str(error).split()).replace(str(path), "the file") or type(error).__name__
        raise InputError(f"{path}: cannot be read as {kind} ({reason[:120]})") from None


def read_rgb(path: Path) -> np.ndarray:
    """Read an 8-bit colour (or grey) image.

    Returns:
        (H, W, 3), uint8.

    Raises:
        InputError: The file is missing, damaged, or of more than 8 bits a channel.
    """
    image_module = import_extra("pillow", "PIL.Image", "reading images")
    with _naming(path, "an 8-bit colour image"), image_module.open(path, formats=_FORMATS) as image:
        if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "YCbCr"):
            raise InputError(f"{path}: expected 8 bits a channel, found image mode {image.mode}")
        return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Read a ground-truth mask: what is not zero is a defect.

    Returns:
        (H, W), bool.
    """
    image_module = import_extra("pillow", "PIL.Image", "reading masks")
    with _naming(path, "a mask image"), image_module.open(path, formats=_FORMATS) as image:
        values = np.asarray(image)
    return values != 0 if values.ndim == 2 else (values[..., :3] != 0).any(axis=-1)


def read_depth(path: Path) -> np.ndarray:
    """Read a 16-bit grey image.

    Returns:
        (H, W), float64, from 0 to 65535.
    """
    image_module = import_extra("pillow", "PIL.Image", "reading depth images")
    with _naming(path, "a 16-bit depth image"), image_module.open(path, formats=_FORMATS) as image:
        if not image.mode.startswith("I"):
            raise InputError(f"{path}: expected a 16-bit grey image, found image mode {image.mode}")
        return np.asarray(image).astype(np.float64)


def read_xyz(path: Path) -> np.ndarray:
    """Read an organised point cloud from a TIFF file; points with a NaN or infinite component become zero.

    Returns:
        (H, W, 3), float32, metres, in the sensor's frame; zeros where nothing was measured.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    tifffile = import_extra("tifffile", "tifffile", "reading point clouds")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our line says what is wrong, tifffile's need not
    with _naming(path, "a TIFF of H×W×3 floats"):
        values = tifffile.imread(path)
    if values.ndim != 3 or values.shape[-1] != 3 or values.dtype.kind != "f":
        raise InputError(f"{path}: expected H×W×3 floats in metres, found shape {values.shape}, {values.dtype}")
    # A float64 beyond float32's range becomes infinite, and with that unmeasured, like any other infinity.
    with np.errstate(over="ignore"):
        xyz = np.array(values, dtype=np.float32)
    xyz[~np.isfinite(xyz).all(axis=-1)] = 0
    return xyz


def read_tag(path: Path) -> str:
    """Read a TIFF's description; empty if there is none or the file cannot be read."""
    tifffile = import_extra("tifffile", "tifffile", "reading point clouds")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            return str(file.pages[0].description)
    except (*_DAMAGE, struct.error, tifffile.TiffFileError):
        return ""


def write_png(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write (H, W, 3) or (H, W) uint8, whole or not at all."""
    image_module = import_extra("pillow", "PIL.Image", "writing images")
    with replacing(path) as partial:
        # Weak compression: three times as fast as the default for files a tenth larger.
        image_module.fromarray(values).save(partial, format="PNG", compress_level=1)


def write_xyz(path: str | os.PathLike[str], values: np.ndarray, tag: str | None = None) -> None:
    """Write (H, W, 3) float32 as TIFF with a description, whole or not at all."""
    tifffile = import_extra("tifffile", "tifffile", "writing point clouds")
    with replacing(path) as partial:
        tifffile.imwrite(partial, values.astype(np.float32), photometric="rgb", description=tag, metadata=None)


def write_map(path: str | os.PathLike[str], values: np.ndarray) -> None:
    """Write (H, W) float32 as TIFF, whole or not at all; its folder is made."""
    tifffile = import_extra("tifffile", "tifffile", "writing anomaly maps")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        tifffile.imwrite(partial, values.astype(np.float32), photometric="minisblack", metadata=None)
