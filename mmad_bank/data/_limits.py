"""Limits on what a picture's header may announce, checked before anything is decoded.

A few hundred bytes can announce a picture of gigabytes. What is refused here costs its header only.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmad_bank.errors import InputError

MAX_PIXELS_VARIABLE = "MMAD_BANK_MAX_PIXELS"
"""Environment variable with the most pixels that a file may have; 0 for no limit."""
MAX_PIXELS = 2**26
"""The limit without that variable: 8192×8192."""
# Files that decode to no more than this are read however small they are: a black mask takes few bytes.
_ALWAYS_BYTES = 2**26
# The most that a larger file may grow. JPEG reaches 340 on pictures of one colour; deflate could reach 1032.
_MOST_GROWTH = 400
# The most pixels of a padded square per pixel of the picture in it, where they are more than the limit.
_MOST_PADDING = 8


def check_announced(path: Path, height: int, width: int, bytes_per_pixel: int) -> None:
    """Refuse a file whose header announces more pixels than the limit, or far more than its bytes can mean.

    Args:
        path: The file.
        height: Height in pixels, as announced.
        width: Width in pixels, as announced.
        bytes_per_pixel: Bytes per pixel in memory, once decoded.

    Raises:
        InputError: It announces too much, or the variable holds something else than a number.
    """
    pixels, allowed, limit = height * width, _allowed(), most_pixels()
    advice = f"; set {MAX_PIXELS_VARIABLE} to read it"
    if limit and pixels > limit:
        found = f"{width}×{height} = {pixels:,}"
        raise InputError(f"{path}: expected at most {limit:,} pixels, found a header of {found}{advice}")
    decoded, size = pixels * bytes_per_pixel, path.stat().st_size
    if allowed is None and decoded > max(_ALWAYS_BYTES, _MOST_GROWTH * size):
        found = f"{size:,} bytes that announce {width}×{height} pixels"
        raise InputError(f"{path}: expected a file of a size that fits its picture, found {found}{advice}")


def check_square(name: str, height: int, width: int, side: int) -> None:
    """Refuse a picture so narrow that the square which it is padded to is far larger than a picture may be.

    Args:
        name: What the picture is called.
        height: Its height in pixels.
        width: Its width in pixels.
        side: Side of the square in pixels.

    Raises:
        InputError: It is, or the environment's variable holds something else than a number.
    """
    limit = most_pixels()
    if limit and side**2 > max(limit, _MOST_PADDING * height * width):
        raise InputError(
            f"{name}: expected a picture whose square has at most {limit:,} pixels, found {width}×{height}, which is"
            f" padded to {side}×{side}; set {MAX_PIXELS_VARIABLE} to pad it"
        )


def most_pixels(without: int = MAX_PIXELS) -> int:
    """Return the most pixels, or points, that a file may have; 0 for no limit.

    Args:
        without: The limit where the environment sets none.
    """
    allowed = _allowed()
    return without if allowed is None else allowed


def limit_is_set() -> bool:
    """Say whether the environment sets the limit."""
    return _allowed() is not None


def _allowed() -> int | None:
    """Return the limit that the environment sets, if it does."""
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise InputError(f"{MAX_PIXELS_VARIABLE}: expected a number of pixels, or 0 for no limit, found {text!r}")
    return int(text)
