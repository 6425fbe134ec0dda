"""Tensors in files, never in memory twice: safetensors written one tensor after the other, and mapped .npy files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.arrays import array_of
from mmad_bank._internal.files import reserve

# In the order in which the format's own writer lays tensors out: the widest first, which keeps all of them aligned.
_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ORDER = {dtype: place for place, dtype in enumerate(_TYPES)}


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, byte for byte as ``safetensors.torch.save_file`` does, into the file that is there.

    ``save_file`` puts a file of its own in the place of the one it is given, mode 0600 and under no lock; it also
    wants all tensors in host memory at once. Use this one within :func:`mmad_bank._internal.files.replacing`.

    Args:
        path: The file.
        tensors: Tensors on any device. One at a time is copied to host memory, if it is not there and contiguous.
        metadata: Text to keep with them.

    Raises:
        OSError: The file cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0]))
    table: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        table[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for _, tensor in ordered:
            file.write(tensor_bytes(tensor).data)


def tensor_bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values as bytes (n,) uint8, of any dtype; they are copied only from a device or where gaps are.

    Example:
        >>> tensor_bytes(torch.ones(2, dtype=torch.bfloat16)).tolist()
        [128, 63, 128, 63]
    """
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return array_of(values.view(torch.uint8))


def new_array(path: str | os.PathLike[str], shape: tuple[int, ...], dtype: Any = np.float32) -> np.memmap:
    """Write a .npy file of zeros and map it; a file that is there is emptied first.

    The disk space is reserved: a full disk is an error here and not, as with a sparse file, a signal that ends the
    process when the mapping is written to.

    Raises:
        InputError: The disk is full, or the file cannot be written; there is no file then.

    Example:
        >>> import tempfile
        >>> array = new_array(Path(tempfile.mkdtemp()) / "rows.npy", (2, 3))
        >>> array[1] = 5
        >>> array.tolist()
        [[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]
    """
    file, kind, start = Path(path), np.dtype(dtype), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        start, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(map(int, shape))}
    )
    header = start.getvalue()
    try:
        with file.open("wb"):
            pass
        reserve(file, len(header) + int(np.prod(shape, dtype=object)) * kind.itemsize)
        with file.open("rb+") as stream:
            stream.write(header)
        array: np.memmap = np.lib.format.open_memmap(file, "r+")
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return array
