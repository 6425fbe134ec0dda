"""Pictures of more than 8 bits per channel, brought to 8 by one rule for all pictures, never by a picture's own range.

A file does not say which part of 16 bits a camera uses: a 12-bit camera's pictures end at 4095 of 65535. Stretched each
by its own brightest pixel, two pictures of one part would differ; taken as full 16 bits, they would be nearly black. So
16 bits are divided by 257, and what would be nearly black then is refused until the number of bits is told.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank.data._tiff import read_array
from mmad_bank.errors import InputError

BITS_VARIABLE = "MMAD_BANK_PICTURE_BITS"
"""Environment variable with the bits that cameras use of the 16 of a PNG or TIFF file."""
_FULL = 65535
_DARK = 4095  # the most that 12 bits can tell
_STRAIGHT_ALPHA = 2  # TIFF's extra sample that colors are not yet multiplied by


def read_deep(path: Path, image: Any) -> np.ndarray:
    """Read a picture of 16 bits per channel, or of floats from 0 to 1, as 8 bits.

    Args:
        path: The file.
        image: The same, opened by Pillow and turned.

    Returns:
        (H, W), or (H, W, C) as its bands, uint8.

    Raises:
        InputError: It has other values, or uses too few of its bits.
    """
    if image.mode == "F":
        return _of_floats(path, np.asarray(image))
    if image.mode.split(";")[0] == "I":
        values = np.asarray(image)
        if values.dtype != np.uint16 and (image.format == "TIFF" or values.min() < 0 or values.max() > _FULL):
            raise InputError(f"{path}: expected 8 or 16 bits per channel, or floats from 0 to 1, found 32-bit integers")
        return _of_bits(path, values, declared=image.format not in ("PNG", "TIFF"))
    return _of_upper_bytes(path, image)


def read_deep_tiff(path: Path) -> np.ndarray:
    """Read a TIFF file with 16 bits per color channel, which Pillow would cut to 8, turned as its orientation says.

    Returns:
        (H, W, 3), uint8, on black where it is transparent.
    """
    tifffile = import_extra("tifffile", "tifffile", "reading 16-bit colors")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        kind, extra = getattr(page.photometric, "name", str(page.photometric)), tuple(page.extrasamples)
        values = read_array(file, path)
    colors = 1 if kind == "MINISBLACK" else 3
    if kind not in ("MINISBLACK", "RGB") or values.ndim != 3 or values.shape[2] not in (colors, colors + 1):
        found = f"{kind}, shape {values.shape}, {values.dtype}"
        raise InputError(f"{path}: expected gray or RGB where channels have 16 bits, found {found}")
    if values.dtype != np.uint16:
        raise InputError(f"{path}: expected 8 or 16 bits per channel, found {values.dtype}")
    shown = _of_bits(path, values[..., :colors], declared=False)
    if values.shape[2] > colors and extra[:1] == (_STRAIGHT_ALPHA,):
        shown = (shown * (values[..., colors:] / _FULL)).round().astype(np.uint8)
    return np.repeat(shown, 3, axis=2) if colors == 1 else shown


def _of_floats(path: Path, values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # nor where one is NaN
        raise InputError(f"{path}: expected floats from 0 to 1, found {low:g} to {high:g}")
    return (values * 255).round().astype(np.uint8)


def _of_bits(path: Path, values: np.ndarray, *, declared: bool) -> np.ndarray:
    """Bring 16-bit values to 8; where the file has declared its range, its decoder has stretched that to 65535."""
    bits, highest = None if declared else _bits(), int(values.max())
    if bits is None:
        if highest <= _DARK and not declared:
            raise _too_dark(path, highest)
        bits = 16
    top = 2**bits - 1
    if highest > top:
        raise InputError(f"{path}: expected values up to {top} ({BITS_VARIABLE}={bits}), found {highest}")
    return (values * np.float32(255 / top)).round().astype(np.uint8)


def _of_upper_bytes(path: Path, image: Any) -> np.ndarray:
    """Check the upper bytes of 16-bit colors, which are all that Pillow reads of a PNG."""
    bits = _bits()
    if bits not in (None, 16):
        expected = f"expected TIFF for colors of {bits} bits in 16 ({BITS_VARIABLE})"
        raise InputError(f"{path}: {expected}, found {image.format}, of which the upper bytes can be read alone")
    values = np.asarray(image)
    highest = int(values[..., : len([band for band in image.getbands() if band != "A"])].max())
    if bits is None and highest <= _DARK >> 8:
        raise _too_dark(path, 256 * highest + 255)
    return values


def _too_dark(path: Path, highest: int) -> InputError:
    return InputError(
        f"{path}: expected 16 bits per channel in use, found values up to {highest} of {_FULL}, as 12-bit cameras write"
        f" them; {BITS_VARIABLE}=12 (or 10, 14) reads all pictures in that range, 16 takes them as dark as they are"
    )


def _bits() -> int | None:
    """Return the number of bits that the environment tells; None if it does not."""
    text = os.environ.get(BITS_VARIABLE, "").strip()
    if not text:
        return None
    if text not in map(str, range(9, 17)):
        raise InputError(f"{BITS_VARIABLE}: expected a number of bits from 9 to 16, found {text!r}")
    return int(text)
