"""What ``.npy`` and ``.npz`` files hold; nothing pickled in them is run."""

from __future__ import annotations

import io
import math
import struct
import threading
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mmad_bank._internal.files import state_of
from mmad_bank.bank.dumps.stored import (
    FILES_OPEN,
    NAME_KEYS,
    Contents,
    Entry,
    Stored,
    in_memory,
    name_of,
    values_of,
)
from mmad_bank.errors import InputError

_LARGEST_NPY_HEADER = 1 << 16  # bytes; NumPy itself refuses to parse more than 10 000
_LARGEST_NAMES = 1 << 28  # bytes
_STREAMS_OPEN = 16  # of one file: as many layers can be joined without reading any of them again


@dataclass(frozen=True)
class _NpyHeader:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int
    """Place of the first value, in bytes from the start."""

    @property
    def entry(self) -> Entry:
        return Entry(self.shape, str(self.dtype), self.dtype.kind == "f")

    def check(self, name: str, n_bytes: int) -> None:
        """Refuse what is no features, or is longer than the ``n_bytes`` that follow the header."""
        if self.dtype.hasobject:
            raise InputError(f"{name}: holds pickled objects, which are never run; expected floating-point values")
        if self.dtype.kind != "f" or self.dtype.itemsize not in (2, 4, 8):
            raise InputError(f"{name}: expected floating-point values, found NumPy dtype {self.dtype}")
        if min(self.shape, default=0) >= 0 and n_bytes < math.prod(self.shape) * self.dtype.itemsize:
            raise InputError(
                f"{name}: truncated or altered, its header promises shape {self.shape} of {self.dtype},"
                f" {n_bytes} bytes follow"
            )


def _read_npy_header(name: str, file: Any) -> _NpyHeader:
    start = file.read(12)
    version = np.lib.format.read_magic(io.BytesIO(start))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise InputError(f"{name}: expected version 1, 2 or 3 of the .npy format, found {version[0]}.{version[1]}")
    (length,) = struct.unpack_from("<H" if version == (1, 0) else "<I", start, 8)
    whole = io.BytesIO(start + file.read(min(length, _LARGEST_NPY_HEADER)))  # a damaged length asks for gigabytes
    whole.seek(8)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's remarks on headers of Python 2
        shape, fortran, dtype = reader(whole)
    return _NpyHeader(tuple(map(int, shape)), fortran and len(shape) > 1, dtype, whole.tell())


def look_into_npy(path: Path) -> Contents:
    """Return what a ``.npy`` file holds: one array, read by runs of its values."""
    with path.open("rb") as file:
        header = _read_npy_header(str(path), file)

    def values(first: int, count: int) -> np.ndarray:
        if header.fortran:
            return np.array(values_of(np.load(path, mmap_mode="r"), first, count))
        return np.fromfile(path, header.dtype, count, offset=header.offset + first * header.dtype.itemsize)

    def open_array(key: str) -> Stored:
        header.check(str(path), path.stat().st_size - header.offset)
        return Stored(str(path), header.shape, values)

    return Contents(path, {"": header.entry}, open_array, kind="array")


class _Archive:
    """The members of an .npz file. A few of them stay open: a compressed stream is cheap to read front to back only."""

    def __init__(self, path: Path) -> None:
        self.file = zipfile.ZipFile(path)
        self.members = {name.removesuffix(".npy"): name for name in self.file.namelist()}
        self._lock = threading.Lock()
        self._streams: dict[str, Any] = {}  # the one read last comes last

    def read(self, key: str, start: int, wanted: memoryview) -> None:
        """Fill a buffer with a member's bytes from ``start`` on."""
        with self._lock:
            stream: Any = self._streams.pop(key, None) or self.file.open(self.members[key])
            self._streams[key] = stream
            if len(self._streams) > _STREAMS_OPEN:
                self._streams.pop(next(iter(self._streams))).close()
            stream.seek(start)  # forwards for free, backwards by starting again
            while len(wanted):
                got = stream.readinto(wanted)
                if not got:
                    raise EOFError("the array ends early")
                wanted = wanted[got:]


@lru_cache(maxsize=FILES_OPEN)
def _archive(path: Path, state: tuple[int, ...]) -> _Archive:
    return _Archive(path)


def look_into_npz(path: Path) -> Contents:
    """Return what an ``.npz`` file holds: its arrays by key, and the images' names if it tells them."""
    headers: dict[str, _NpyHeader] = {}
    names: tuple[str, ...] | None = None
    archive = _archive(path, state_of(path))
    for key, member in archive.members.items():
        with archive.file.open(member) as start:
            headers[key] = _read_npy_header(f"{path}, {key}" if len(archive.members) > 1 else str(path), start)
        if key in NAME_KEYS and headers[key].dtype.kind in "USO" and names is None:
            names = _read_npz_names(path, archive, key, headers[key])

    def values(key: str, first: int, count: int) -> np.ndarray:
        dtype = headers[key].dtype
        found = np.empty(count, dtype)
        start = headers[key].offset + first * dtype.itemsize
        _archive(path, state_of(path)).read(key, start, found.view(np.uint8).data)
        return found

    def open_array(key: str) -> Stored:
        name = name_of(path, key, len(headers))
        header = headers[key]
        header.check(name, archive.file.getinfo(archive.members[key]).file_size - header.offset)
        if header.fortran:  # rows lie scattered over the compressed stream: read it whole
            return in_memory(name, np.load(path)[key])
        return Stored(name, header.shape, partial(values, key))

    entries = {key: header.entry for key, header in headers.items() if header.dtype.kind not in "US"}
    return Contents(path, entries, open_array, names)


def _read_npz_names(path: Path, archive: _Archive, key: str, header: _NpyHeader) -> tuple[str, ...]:
    size = archive.file.getinfo(archive.members[key]).file_size
    if header.dtype.hasobject:
        raise InputError(
            f"{path}: its {key} are pickled Python objects, which are never run; expected text"
            f" (np.array({key}, dtype=str))"
        )
    if len(header.shape) != 1 or size > _LARGEST_NAMES:
        raise InputError(f"{path}: expected one-dimensional {key}, found {header.entry} in {size} bytes")
    content = np.empty(header.shape, header.dtype)
    archive.read(key, header.offset, content.view(np.uint8).data)
    return tuple(one.decode("utf-8") if isinstance(one, bytes) else str(one) for one in content.tolist())
