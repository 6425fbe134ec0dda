"""Files of FAISS's flat index: read and written without FAISS, whose reader is not made for hostile bytes.

All numbers are little-endian: ``IxF2``, int32 dimension, int64 number of vectors, two int64 that FAISS ignores, a byte
(trained), int32 metric (1 is the Euclidean one), uint64 number of values, and the values, float32.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from mmad_bank._internal.files import replacing
from mmad_bank.errors import FormatError, InputError

_NAME = b"IxF2"
_HEAD = struct.Struct("<4siqqq?iQ")
_IGNORED = 1 << 20  # what FAISS writes there
_EUCLIDEAN = 1


def read_flat(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the vectors (N, D) float32 of a flat index in a file that ``faiss.write_index`` has written.

    Raises:
        InputError: There is no such file, or it cannot be read.
        FormatError: It holds no flat index of Euclidean distances, or is truncated or altered.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD.size)
            dim, count = _shape(head, path)
            size = os.fstat(opened.fileno()).st_size - _HEAD.size
            if size != 4 * dim * count:
                raise FormatError(f"{path}: truncated or altered, expected {4 * dim * count} bytes, found {size}")
            values = np.fromfile(opened, "<f4", dim * count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return values.astype(np.float32, copy=False).reshape(count, dim)


def _shape(head: bytes, path: str | os.PathLike[str]) -> tuple[int, int]:
    if len(head) < _HEAD.size or not head.startswith(_NAME):
        raise FormatError(
            f"{path}: expected a flat FAISS index of Euclidean distances ({_NAME.decode()}), found another file"
        )
    _, dim, count, _, _, _, metric, values = _HEAD.unpack(head)
    if metric != _EUCLIDEAN:
        raise FormatError(f"{path}: expected an index of Euclidean distances, found FAISS's metric {metric}")
    if dim < 0 or count < 0 or values != dim * count:
        raise FormatError(f"{path}: altered, {count} vectors of {dim} values cannot have {values} of them")
    return dim, count


def write_flat(vectors: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write vectors (N, D) float32 as ``faiss.write_index`` writes a flat index; the file appears when it is whole.

    Raises:
        InputError: The file cannot be written.
    """
    count, dim = vectors.shape
    with replacing(path) as partial, partial.open("wb") as opened:
        opened.write(_HEAD.pack(_NAME, dim, count, _IGNORED, _IGNORED, True, _EUCLIDEAN, count * dim))
        opened.write(np.ascontiguousarray(vectors, "<f4").data)
