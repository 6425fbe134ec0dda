"""Feature dumps: patch features on disk or in memory, read in blocks so that a dump may be larger than memory.

A file is opened, sliced and let go for every block. Mapped pages that have been read therefore never pile up in the
process, and a .npy file is read with plain sequential reads, which the kernel's read-ahead serves best.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmad_bank._checks import ArrayLike, as_float_tensor, check_finite
from mmad_bank._decoding import decoding
from mmad_bank.bank.provenance import Source
from mmad_bank.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")

PathLike = str | os.PathLike[str]
_BLOCK_BYTES = 8 << 20  # small enough that the allocator keeps the pages for the next block
_LARGEST_NPY_HEADER = 1 << 16  # bytes; NumPy itself refuses to parse more than 10 000


@dataclass(frozen=True)
class Part:
    """One file or array of a dump, seen as rows."""

    source: Source
    dim: int
    fetch: Callable[[int, int], ArrayLike]  # (first row, number of rows) -> rows in the part's own dtype
    resident: bool = False  # the values are in memory already

    def read(self, first: int, count: int) -> Tensor:
        """Return rows ``first`` to ``first + count`` as float32."""
        with decoding(self.source.file, f"cannot read rows from {first} on"):
            rows = self.fetch(first, count)
        return as_float_tensor(rows, self.source.file)


class FeatureDump:
    """Patch features from one or more files or arrays, as one long run of rows.

    Make one with :func:`open_dump`. ``len(dump)`` is the number of rows in all, ``dump.dim`` their length.

    Example:
        >>> import torch
        >>> dump = open_dump(torch.rand(4, 10, 8))       # 4 images of 10 patches
        >>> len(dump), dump.dim, dump.sources[0].patches
        (40, 8, 10)
        >>> dump.take(torch.tensor([39, 0])).shape
        torch.Size([2, 8])
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts:
            raise InputError("features: expected at least one file or array, found none")
        self.parts = list(parts)
        self.dim = parts[0].dim
        for part in parts:
            if part.dim != self.dim:
                raise InputError(
                    f"{part.source.file}: expected vectors of length {self.dim} as in {parts[0].source.file},"
                    f" found {part.dim}"
                )
        self.sources = [part.source for part in parts]

    def __len__(self) -> int:
        return sum(source.rows for source in self.sources)

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield (number of the first row, float32 rows), at most ``rows`` rows (default: 8 MiB of them) at a time.

        Raises:
            InputError: A row holds NaN or infinity (the file and the row in it are named), or a file cannot be read.
        """
        step = rows or self._block_rows
        start = 0
        for part in self.parts:
            for first in range(0, part.source.rows, step):
                block = part.read(first, min(step, part.source.rows - first))
                check_finite(block, part.source.file, first_row=first)
                yield start + first, block
            start += part.source.rows

    def take(self, rows: Tensor) -> Tensor:
        """Gather rows by number: int64 (n,) -> float32 (n, D) in that order; the files are read front to back once."""
        wanted, order = rows.cpu().sort()
        taken: Tensor | None = None
        start = 0
        for part in self.parts:
            step = self._block_rows
            for first in range(0, part.source.rows, step):
                low, high = torch.searchsorted(
                    wanted, torch.tensor([start + first, start + min(first + step, part.source.rows)])
                ).tolist()
                if low == high:
                    continue
                inside = wanted[low:high] - start
                span = part.read(int(inside[0]), int(inside[-1] - inside[0]) + 1)
                if taken is None:
                    taken = torch.empty(len(rows), self.dim, dtype=torch.float32, device=span.device)
                taken[order[low:high].to(span.device)] = span[(inside - inside[0]).to(span.device)]
            start += part.source.rows
        if taken is None:
            raise InputError("rows: expected at least one row number of the dump, found none")
        return taken

    @property
    def _block_rows(self) -> int:
        return max(1, _BLOCK_BYTES // (4 * self.dim))


def open_dump(features: FeatureDump | ArrayLike | PathLike | Sequence[PathLike]) -> FeatureDump:
    """Open features: an array, a file, a folder of files, or several of these paths.

    Files: ``.npy``, ``.npz``, ``.safetensors``, ``.pt`` (plain tensors only: pickled code is never run), each with
    float16, bfloat16, float32 or float64 values of shape (N, D) or (images, patches, D). A file that holds several
    arrays must call one of them ``features``. A folder is read in the order of its file names.

    Raises:
        InputError: Nothing to read, a file that cannot be read, no floating-point values, a wrong shape, or vectors of
            different lengths; the message names the file.

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "features.npy"
        >>> np.save(path, np.zeros((3, 4), np.float16))
        >>> len(open_dump(path))
        3
    """
    if isinstance(features, FeatureDump):
        return features
    if isinstance(features, (np.ndarray, Tensor)):
        return FeatureDump([_array_part("features", features)])
    if isinstance(features, (str, os.PathLike)):
        features = [features]
    if not isinstance(features, Sequence) or not all(isinstance(path, (str, os.PathLike)) for path in features):
        raise InputError(f"features: expected an array, a path or a list of paths, found {type(features).__name__}")
    return FeatureDump([_open_file(file) for path in features for file in _files_of(Path(path))])


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        if not files:
            raise InputError(f"{path}: expected a folder with {', '.join(SUFFIXES)} files, found none")
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a {', '.join(SUFFIXES)} file, found '{path.suffix}'")
    return [path]


def _open_file(path: Path) -> Part:
    opener = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}.get(path.suffix, _open_torch)
    with decoding(path, f"damaged or not a {path.suffix} file"):
        return opener(path)


def _array_part(name: str, array: ArrayLike) -> Part:
    source, dim = _as_rows(name, array.shape)
    rows = array.reshape(-1, dim)
    as_float_tensor(rows[:0], name)  # says at once if the dtype is wrong
    return Part(source, dim, lambda first, count: rows[first : first + count], resident=True)


def _as_rows(name: str, shape: Sequence[int]) -> tuple[Source, int]:
    """Read a shape as rows: (N, D), or (images, patches, D)."""
    if len(shape) not in (2, 3):
        raise InputError(f"{name}: expected shape (N, D) or (images, patches, D), found {tuple(shape)}")
    if min(shape) < 1:
        raise InputError(f"{name}: expected at least one row and one column, found shape {tuple(shape)}")
    patches = int(shape[1]) if len(shape) == 3 else None
    return Source(name, math.prod(map(int, shape[:-1])), patches), int(shape[-1])


def _float_dtype(name: str, dtype: np.dtype) -> np.dtype:
    if dtype.hasobject:
        raise InputError(f"{name}: holds pickled Python objects, which are never run; expected floating-point values")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise InputError(f"{name}: expected floating-point values, found NumPy dtype {dtype}")
    return dtype


def _pick(name: str, keys: Sequence[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    if "features" in keys:
        return "features"
    found = ", ".join(sorted(keys)[:5]) if keys else "none"
    raise InputError(f"{name}: expected one array, or one called 'features' among several, found {found}")


def _open_npy(path: Path) -> Part:
    with path.open("rb") as file:
        shape, fortran, dtype, offset = _npy_header(str(path), file)
    source, dim = _as_rows(str(path), shape)
    _check_length(source, dim, dtype, path.stat().st_size - offset)

    def fetch(first: int, count: int) -> np.ndarray:
        if fortran:
            return np.array(np.load(path, mmap_mode="r").reshape(-1, dim)[first : first + count])
        start = offset + first * dim * dtype.itemsize
        return np.fromfile(path, dtype, count * dim, offset=start).reshape(count, dim)

    return Part(source, dim, fetch)


def _npy_header(name: str, file: Any) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether columns come first, dtype, and the place of the first value."""
    start = io.BytesIO(file.read(_LARGEST_NPY_HEADER))  # a damaged length must not ask for gigabytes
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(start)
    elif version in ((2, 0), (3, 0)):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(start)
    else:
        raise InputError(f"{name}: expected version 1, 2 or 3 of the .npy format, found {version[0]}.{version[1]}")
    return shape, fortran and len(shape) > 1, _float_dtype(name, dtype), start.tell()


def _check_length(source: Source, dim: int, dtype: np.dtype, n_bytes: int) -> None:
    """Refuse an array that is longer than what follows its header."""
    if n_bytes < source.rows * dim * dtype.itemsize:
        raise InputError(
            f"{source.file}: truncated or altered, its header promises {source.rows} vectors of length {dim}, {dtype},"
            f" {n_bytes} bytes follow"
        )


def _open_npz(path: Path) -> Part:
    with zipfile.ZipFile(path) as archive:
        key = _pick(str(path), [name.removesuffix(".npy") for name in archive.namelist()])
        member = key if key in archive.namelist() else f"{key}.npy"
        with archive.open(member) as start:
            shape, fortran, dtype, offset = _npy_header(str(path), start)
        n_bytes = archive.getinfo(member).file_size - offset
    source, dim = _as_rows(str(path), shape)
    _check_length(source, dim, dtype, n_bytes)
    if fortran:  # rows lie scattered over the compressed stream: read it whole
        return _array_part(str(path), np.load(path)[key])
    # It stays open: a compressed stream is cheap to read front to back only.
    stream = zipfile.ZipFile(path).open(member)  # noqa: SIM115

    def fetch(first: int, count: int) -> np.ndarray:
        stream.seek(offset + first * dim * dtype.itemsize)  # forwards for free, backwards by starting again
        rows = np.empty((count, dim), dtype)
        wanted = rows.reshape(-1).view(np.uint8).data
        while len(wanted):
            got = stream.readinto(wanted)  # type: ignore[attr-defined]
            if not got:
                raise EOFError("the array ends early")
            wanted = wanted[got:]
        return rows

    return Part(source, dim, fetch)


def _open_safetensors(path: Path) -> Part:
    from safetensors import safe_open

    def tensor(key: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)

    with safe_open(path, framework="pt") as file:
        key = _pick(str(path), list(file.keys()))
    return _reopening_part(path, lambda: tensor(key))


def _open_torch(path: Path) -> Part:
    def load(mmap: bool) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's remarks on pickle protocols; a refusal says enough
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if isinstance(value, dict):
            value = value[_pick(str(path), [k for k, v in value.items() if isinstance(v, Tensor)])]
        if not isinstance(value, Tensor):
            raise InputError(f"{path}: expected a tensor, found {type(value).__name__}")
        size = path.stat().st_size
        if value.layout == torch.strided and value.numel() * value.element_size() > size:
            raise InputError(
                f"{path}: truncated or altered, or a view that repeats its values: shape {tuple(value.shape)} of"
                f" {value.dtype} in a file of {size} bytes"
            )
        return value.detach()

    try:
        if zipfile.is_zipfile(path):
            return _reopening_part(path, lambda: load(mmap=True))
        return _array_part(str(path), load(mmap=False))  # the old torch.save format cannot be mapped
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds pickled Python objects or is damaged; expected plain tensors (pickled code is never run)"
        ) from error


def _reopening_part(path: Path, tensor: Callable[[], Tensor]) -> Part:
    """Map the file anew for every block, so that pages read before do not stay in the process."""
    part = _array_part(str(path), tensor())
    dim = part.dim
    return Part(part.source, dim, lambda first, count: tensor().reshape(-1, dim)[first : first + count].clone())
