"""Arrays where they lie, in files or in memory: what a file holds, and any run of an array's values."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._internal.checks import FLOATS, ArrayLike, as_float_tensor
from mmad_bank._internal.decoding import decoding
from mmad_bank._internal.state_dicts import check_restricted_loading
from mmad_bank.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")
NAME_KEYS = ("names", "ids")
"""Under one of these a file that holds several things may name its images."""

_LARGEST_NPY_HEADER = 1 << 16  # bytes; NumPy itself refuses to parse more than 10 000
_LARGEST_NAMES = 1 << 28  # bytes
_DEEPEST = 4  # dictionaries in dictionaries
_FILES_OPEN = 16
_STREAMS_OPEN = 16  # of one file: as many layers can be joined without reading any of them again
_MAPPED_BYTES = 32 << 20  # read of a mapped file, until it is mapped anew: pages that were read go with the old mapping
_LISTED = 8


@dataclass(frozen=True)
class Stored:
    """An array in a file or in memory."""

    name: str
    """For messages: the file, and the key behind it if the file holds several arrays."""
    shape: tuple[int, ...]
    values: Callable[[int, int], ArrayLike]
    """(first value, number of values), counted row by row, to a 1-D array of the array's own dtype."""
    resident: bool = False
    """The values are in memory already, and are handed out without a copy."""


@dataclass(frozen=True)
class Entry:
    """What is known of an array before it is opened."""

    shape: tuple[int, ...]
    dtype: str
    is_float: bool

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    path: Path
    entries: dict[str, Entry]
    open: Callable[[str], Stored]
    names: tuple[str, ...] | None = None
    """Of the images, if the file tells them."""
    kind: str = "dictionary"
    """``"array"`` (its key is the empty word), ``"list"`` of arrays (their keys count them), or ``"dictionary"``."""

    def listing(self) -> str:
        """Word the arrays with their dtypes and shapes, the first few if there are many."""
        words = [f"{key} {entry}" for key, entry in list(self.entries.items())[:_LISTED]]
        more = len(self.entries) - len(words)
        return ", ".join(words) + (f" and {more} more" if more else "") or "none"

    def features(self) -> list[str]:
        """Return the keys that may be features: floating-point arrays of at least two dimensions."""
        return [key for key, entry in self.entries.items() if entry.is_float and len(entry.shape) > 1]


def read_contents(path: Path) -> Contents:
    """Look into a file.

    Raises:
        InputError: It is damaged, of another format, or asks for code to be run.
    """
    suffix = path.suffix.lower()
    reader = {".npy": _look_into_npy, ".npz": _look_into_npz, ".safetensors": _look_into_safetensors}
    with decoding(path, f"damaged or not a {suffix} file"):
        return reader.get(suffix, _look_into_torch)(path)


def in_memory(name: str, array: ArrayLike) -> Stored:
    """Return an array that is in memory as one that is stored."""
    as_float_tensor(array[:0], name, ndim=tuple(range(1, array.ndim + 1)))  # says at once if the dtype is wrong
    return Stored(name, tuple(map(int, array.shape)), partial(_values_of, array), resident=_is_contiguous(array))


def joined(name: str, arrays: list[Stored]) -> Stored:
    """Put arrays of one shape behind one another as the images of one array: n of (P, D) are one (n, P, D)."""
    shape = arrays[0].shape
    each = math.prod(shape)

    def values(first: int, count: int) -> ArrayLike:
        found, end = [], first + count
        for number in range(first // each, -(-end // each)):
            start, stop = max(first - number * each, 0), min(end - number * each, each)
            found.append(as_float_tensor(arrays[number].values(start, stop - start), arrays[number].name, ndim=1))
        return torch.cat(found)

    return Stored(name, (len(arrays), *shape), values)


def _is_contiguous(array: ArrayLike) -> bool:
    return array.is_contiguous() if isinstance(array, Tensor) else bool(array.flags.c_contiguous)


def _values_of(array: ArrayLike, first: int, count: int) -> ArrayLike:
    """Return a run of an array's values; of one that lies otherwise in memory no more than the items it touches."""
    if _is_contiguous(array):
        return array.reshape(-1)[first : first + count]
    width = math.prod(array.shape[1:])
    low, high = first // width, -(-(first + count) // width)
    return array[low:high].reshape(-1)[first - low * width :][:count]


# ---------------------------------------------------------------------------------------------------------------------
# .npy and .npz


@dataclass(frozen=True)
class _NpyHeader:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int
    """Of the first value."""

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


def _look_into_npy(path: Path) -> Contents:
    with path.open("rb") as file:
        header = _read_npy_header(str(path), file)

    def values(first: int, count: int) -> np.ndarray:
        if header.fortran:
            return np.array(_values_of(np.load(path, mmap_mode="r"), first, count))
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


@lru_cache(maxsize=_FILES_OPEN)
def _archive(path: Path, state: tuple[int, ...]) -> _Archive:
    return _Archive(path)


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _look_into_npz(path: Path) -> Contents:
    headers: dict[str, _NpyHeader] = {}
    names: tuple[str, ...] | None = None
    archive = _archive(path, _state(path))
    for key, member in archive.members.items():
        with archive.file.open(member) as start:
            headers[key] = _read_npy_header(f"{path}, {key}" if len(archive.members) > 1 else str(path), start)
        if key in NAME_KEYS and headers[key].dtype.kind in "USO" and names is None:
            names = _read_npz_names(path, archive, key, headers[key])

    def values(key: str, first: int, count: int) -> np.ndarray:
        dtype = headers[key].dtype
        found = np.empty(count, dtype)
        start = headers[key].offset + first * dtype.itemsize
        _archive(path, _state(path)).read(key, start, found.view(np.uint8).data)
        return found

    def open_array(key: str) -> Stored:
        name = _name_of(path, key, len(headers))
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


def _name_of(path: Path, key: str, n_arrays: int) -> str:
    return str(path) if n_arrays == 1 else f"{path}, {key}"


# ---------------------------------------------------------------------------------------------------------------------
# .safetensors and .pt, memory-mapped


class _Mapped:
    """The tensors of a mapped file; it is mapped anew from time to time, so that pages read before do not pile up."""

    def __init__(self, load: Callable[[], Callable[[str], Tensor]]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._get: Callable[[str], Tensor] | None = None
        self._read = 0

    def values(self, key: str, first: int, count: int) -> Tensor:
        """Return a copy of a run of a tensor's values."""
        with self._lock:
            if self._get is None or self._read > _MAPPED_BYTES:
                self._get, self._read = self._load(), 0
            found = _values_of(self._get(key), first, count)
            assert isinstance(found, Tensor)
            self._read += found.nbytes
            return found.clone()


@lru_cache(maxsize=_FILES_OPEN)
def _mapped_safetensors(path: Path, state: tuple[int, ...]) -> _Mapped:
    from safetensors import safe_open

    return _Mapped(lambda: safe_open(path, framework="pt").get_tensor)


@lru_cache(maxsize=_FILES_OPEN)
def _mapped_torch(path: Path, state: tuple[int, ...]) -> _Mapped:
    return _Mapped(lambda: _flatten(_load_torch(path, mmap=True)).__getitem__)


def _tensor_entry(tensor: Tensor) -> Entry:
    return Entry(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.dtype in FLOATS)


def _look_into_safetensors(path: Path) -> Contents:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
        entries = {key: _tensor_entry(file.get_tensor(key)) for key in keys}
    told = next((key for key in NAME_KEYS if key in metadata), None)
    names = None if told is None else _check_names(path, told, _parse_list(metadata[told]))

    def open_array(key: str) -> Stored:
        name, entry = _name_of(path, key, len(entries)), entries[key]
        _check_dtype(name, entry)
        return Stored(name, entry.shape, partial(_mapped_values, _mapped_safetensors, path, key))

    return Contents(path, entries, open_array, names)


def _parse_list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _load_torch(path: Path, *, mmap: bool) -> Any:
    check_restricted_loading(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's remarks on pickle protocols; a refusal says enough
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _flatten(value: Any) -> dict[str, Any]:
    """Return what a .pt file holds by key: dictionaries in dictionaries get keys with a dot, lists are counted."""
    if isinstance(value, Tensor):
        return {"": value}
    if isinstance(value, (list, tuple)):
        return {str(number): item for number, item in enumerate(value)}
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        prefix, inside, depth = waiting.pop()
        for key, item in inside.items():
            if isinstance(item, Mapping) and depth < _DEEPEST:
                waiting.append((f"{prefix}{key}.", item, depth + 1))
            else:
                found[f"{prefix}{key}"] = item
    return found


def _look_into_torch(path: Path) -> Contents:
    is_zip = zipfile.is_zipfile(path)  # the old torch.save format cannot be mapped
    try:
        value = _load_torch(path, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds pickled Python objects or is damaged; expected plain tensors (pickled code is never run)"
        ) from error
    if not isinstance(value, (Tensor, Mapping, list, tuple)):
        raise InputError(f"{path}: expected a tensor, found {type(value).__name__}")
    found = _flatten(value)
    tensors = {key: item for key, item in found.items() if isinstance(item, Tensor)}
    if isinstance(value, (list, tuple)) and len(tensors) < len(found):
        other = next(item for item in found.values() if not isinstance(item, Tensor))
        raise InputError(f"{path}: expected a list of tensors, found {type(other).__name__} in it")
    told = next((key for key in NAME_KEYS if isinstance(found.get(key), (list, tuple))), None)
    names = None if told is None else _check_names(path, told, found[told])
    entries = {key: _tensor_entry(tensor) for key, tensor in tensors.items()}
    problems = {key: _problem_of(tensor, path.stat().st_size) for key, tensor in tensors.items()}
    resident = {} if is_zip else tensors

    def open_array(key: str) -> Stored:
        name, entry = _name_of(path, key, len(entries)), entries[key]
        if problems[key] is not None:
            raise InputError(f"{name}: {problems[key]}")
        _check_dtype(name, entry)
        if key in resident:
            return in_memory(name, resident[key].detach())
        return Stored(name, entry.shape, partial(_mapped_values, _mapped_torch, path, key))

    kind = "array" if isinstance(value, Tensor) else "dictionary" if isinstance(value, Mapping) else "list"
    return Contents(path, entries, open_array, names, kind)


def _problem_of(tensor: Tensor, n_bytes: int) -> str | None:
    """Say why a tensor of a file of ``n_bytes`` is no plain array."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return f"expected a dense tensor, found {str(tensor.layout).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > n_bytes:
        return (
            f"truncated or altered, or a view that repeats its values: shape {tuple(tensor.shape)} of {tensor.dtype} in"
            f" a file of {n_bytes} bytes"
        )
    return None


def _mapped_values(mapped: Callable[..., _Mapped], path: Path, key: str, first: int, count: int) -> Tensor:
    return mapped(path, _state(path)).values(key, first, count)


def _check_dtype(name: str, entry: Entry) -> None:
    if not entry.is_float:
        raise InputError(f"{name}: expected floating-point values, found {entry.dtype}")


def _check_names(path: Path, key: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: expected its {key} to be a list of text, found something else")
    return tuple(names)
