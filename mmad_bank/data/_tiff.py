"""One array out of a TIFF file of a stranger's: what is announced is checked against the file before it is decoded."""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank.data._limits import check_announced
from mmad_bank.errors import InputError

_PLAIN, _DEFLATE, _PACKBITS = 1, (8, 32946), 32773
# LZW, Zstandard: imagecodecs' decoders stop at the announced size. Others are not for floats, or know no limit.
_OF_IMAGECODECS = (5, 50000, 34926)
_FLOAT_PREDICTOR, _PLANES = 3, 2
# EXIF's orientation → how often to turn by 90 degrees counter-clockwise, and whether to flip left and right then.
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


def read_array(file: Any, path: Path) -> np.ndarray:
    """Read the first image of an open TIFF file, turned as its orientation says.

    The pages of an (H, W, C) array that tifffile wrote as H pages of (W, C) are joined.

    Args:
        file: ``tifffile.TiffFile``.
        path: Path that errors name.

    Returns:
        (H, W) or (H, W, C), of the file's own type.

    Raises:
        InputError: The file announces more than it holds, or than may be read.
    """
    page = file.pages[0]
    if page.ndim == 2 and page.is_shaped and page.shape[1] <= 4 and len(file.pages) > 1:
        check_announced(path, len(file.pages), page.shape[0], page.shape[1] * page.dtype.itemsize)
        # Pages after the first may be mere places of data in the first one's format: read each with its own header.
        file.pages.useframes = False
        return np.stack([_read_page(file.pages[number], path) for number in range(len(file.pages))])
    values = _read_page(page, path)
    if values.ndim == 3 and page.planarconfig == _PLANES:
        values = np.moveaxis(values, 0, -1)
    orientation = page.tags.get(274)
    turns, flip = _TURNS.get(1 if orientation is None else orientation.value, (0, False))
    values = np.rot90(values, turns)
    return values[:, ::-1] if flip else values


def _read_page(page: Any, path: Path) -> np.ndarray:
    if page.dtype is None or page.ndim not in (2, 3) or page.imagedepth != 1 or 0 in page.shape:
        raise InputError(f"{path}: expected one image of numbers, found shape {page.shape}, {page.dtype}")
    check_announced(path, page.imagelength, page.imagewidth, page.samplesperpixel * page.dtype.itemsize)
    parts, stored = prod(page.chunked), len(page.dataoffsets)
    if stored < parts or len(page.databytecounts) < parts:
        raise InputError(f"{path}: truncated, expected {parts:,} strips or tiles of data, found {stored:,}")
    if page.compression == _PLAIN:
        size = path.stat().st_size
        if page.nbytes > size:
            raise InputError(f"{path}: truncated, expected {page.nbytes:,} bytes of data, found a file of {size:,}")
    elif page.compression in _DEFLATE:
        _check_inflated(page, path)
    elif page.compression not in (*_OF_IMAGECODECS, _PACKBITS):
        name = getattr(page.compression, "name", page.compression)
        raise InputError(f"{path}: expected no compression, deflate, LZW, PackBits or Zstandard, found {name}")
    needs_codecs = page.compression in _OF_IMAGECODECS or page.predictor == _FLOAT_PREDICTOR
    if needs_codecs and find_spec("imagecodecs") is None:
        raise InputError(f"{path}: its compression needs the package imagecodecs: pip install imagecodecs")
    return np.asarray(page.asarray())


def _check_inflated(page: Any, path: Path) -> None:
    """Refuse a strip that inflates to more than it announces; Python's zlib would inflate it to its end.

    Strips too short to become large are left to the decoder.
    """
    expected = prod(page.chunks) * page.dtype.itemsize
    most = max(2 * expected, 2**24)
    handle = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if count * 1032 <= most:
            continue
        handle.seek(offset)
        inflater, left = zlib.decompressobj(), handle.read(count)
        inflated = 0
        while left and not inflater.eof:
            inflated += len(inflater.decompress(left, 2**20))
            left = inflater.unconsumed_tail
            if inflated > most:
                raise InputError(f"{path}: expected strips of {expected:,} bytes, found one of more than {most:,}")
