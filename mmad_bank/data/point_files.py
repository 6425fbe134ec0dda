"""Point clouds of a stranger's: PCD and PLY, checked against the size of the file before anything is decoded.

The headers are read here, as only what they announce tells how much memory a file takes. NumPy decodes text and plain
binary data by them. Open3D decodes compressed data. It believes what a file says of itself, so it is given a copy whose
header is written here, once the sizes are known to be true.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmad_bank._internal.extras import import_extra
from mmad_bank.data._images import naming
from mmad_bank.data._limits import MAX_PIXELS_VARIABLE, most_pixels
from mmad_bank.errors import InputError

_AXES = ("x", "y", "z")
_LONGEST_HEADER = 2**16  # bytes
_MOST_POINTS = 2**24  # a projection takes some 150 bytes for each
_MOST_FIELDS = 128  # Open3D reads 1,024 characters of a line
_PCD_TYPES = {f"{kind}{size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
_PCD_TYPES |= {"F4": "<f4", "F8": "<f8"}
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
# LZF makes at most 264 bytes of three.
_MOST_GROWTH = 88


@dataclass(frozen=True)
class _Header:
    """What a file says of its points.

    Attributes:
        encoding: ``"ascii"``, ``"binary"`` or ``"binary_compressed"``.
        row: Type of a point, with a field for each value (its columns in a text file, in order).
        axes: Names of the fields x, y and z.
        points: Number of points.
        begin: Place in the file where the data begin.
        skip: Rows of text, or bytes, before the points.
    """

    encoding: str
    row: np.dtype
    axes: tuple[str, ...]
    points: int
    begin: int
    skip: int = 0


def read_points(path: Path) -> np.ndarray:
    """Read the points of a PCD (text, binary or compressed) or PLY file (text or binary).

    Returns:
        (N, 3), float64, in the file's unit and order; not finite where the file says so.

    Raises:
        InputError: The file is missing, damaged or too large, has no points, or holds something else.
        MissingExtraError: It is compressed, and Open3D is not installed.
    """
    with naming(path, "a point cloud"), path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
        if not start:
            raise InputError(f"{path}: expected a PCD or PLY file, found an empty one")
        header = (_ply_header if start.startswith(b"ply") else _pcd_header)(path, start)
        _check_number(path, header.points)
        left = path.stat().st_size - header.begin
        file.seek(header.begin)
        if header.encoding == "ascii":
            return _read_text(path, file, header, left)
        if header.encoding == "binary":
            return _read_binary(path, file, header, left)
        return _read_compressed(path, file, header, left)


def _check_number(path: Path, points: int) -> None:
    limit = most_pixels(_MOST_POINTS)
    if points < 1:
        raise InputError(f"{path}: expected points, found none")
    if limit and points > limit:
        found = f"a header of {points:,}; set {MAX_PIXELS_VARIABLE} to read it"
        raise InputError(f"{path}: expected at most {limit:,} points, found {found}")


# Headers.


def _pcd_header(path: Path, start: bytes) -> _Header:
    """Read the header of a PCD file: lines of a word and its values, the last one DATA."""
    end = re.search(rb"^DATA[ \t]+(\w+)[ \t]*\r?\n", start, flags=re.MULTILINE)
    if end is None:
        raise InputError(f"{path}: expected the header of a PCD or PLY file, found something else")
    lines = (line.split() for line in start[: end.start()].decode("latin1").splitlines() if not line.startswith("#"))
    said = {words[0].upper(): words[1:] for words in lines if words}
    names = said.get("FIELDS") or said.get("COLUMNS") or []
    kinds, sizes = said.get("TYPE", []), said.get("SIZE", [])
    counts = said.get("COUNT", ["1"] * len(names))
    if not len(names) == len(kinds) == len(sizes) == len(counts) or not 0 < len(names) <= _MOST_FIELDS:
        raise InputError(f"{path}: expected as many of FIELDS, SIZE, TYPE and COUNT, found {names[:6]}, {sizes[:6]}")
    fields = [
        (_numbered(number, name), _PCD_TYPES.get(f"{kind}{size}", "none"), (_whole(path, "COUNT", count, 2**16),))
        for number, (name, kind, size, count) in enumerate(zip(names, kinds, sizes, counts, strict=True))
    ]
    encoding = end[1].decode().lower()
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise InputError(f"{path}: expected DATA ascii, binary or binary_compressed, found {encoding!r}")
    width, height = (_whole(path, name, " ".join(said.get(name, ["?"]))) for name in ("WIDTH", "HEIGHT"))
    points = _whole(path, "POINTS", " ".join(said.get("POINTS", [str(width * height)])))
    if points != width * height:
        raise InputError(f"{path}: expected WIDTH times HEIGHT points, {width} times {height}, found {points}")
    return _Header(encoding, _row(path, fields), _axes(path, names), points, end.end())


def _ply_header(path: Path, start: bytes) -> _Header:
    """Read the header of a PLY file: its elements in order, each with its properties."""
    end = re.search(rb"^end_header[ \t]*\r?\n", start, flags=re.MULTILINE)
    if end is None:
        raise InputError(f"{path}: expected the header of a PLY file, found no end of it")
    lines = [line.split() for line in start[: end.start()].decode("latin1").splitlines()]
    encoding = next((words[1] for words in lines if words[:1] == ["format"] and len(words) == 3), "none")
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise InputError(f"{path}: expected the format ascii or binary, found {encoding!r}")
    order = ">" if encoding == "binary_big_endian" else "<"
    skip = 0
    for name, count, properties in _elements(path, lines):
        if any(len(one) != 2 or one[0] not in _PLY_TYPES for one in properties) or not properties:
            found = " ".join(next((one for one in properties if len(one) != 2 or one[0] not in _PLY_TYPES), ["none"]))
            raise InputError(f"{path}: expected plain numbers as properties of {name}, found {found!r}")
        fields = [(_numbered(i, one[1]), f"{order}{_PLY_TYPES[one[0]]}", (1,)) for i, one in enumerate(properties)]
        row = _row(path, fields)
        if name == "vertex":
            axes = _axes(path, [one[1] for one in properties])
            return _Header("ascii" if encoding == "ascii" else "binary", row, axes, count, end.end(), skip)
        skip += count if encoding == "ascii" else count * row.itemsize
    raise InputError(f"{path}: expected an element 'vertex', found none")


def _elements(path: Path, lines: list[list[str]]) -> list[tuple[str, int, list[list[str]]]]:
    """Return the elements of a PLY file up to the vertices: name, number, and each property's words."""
    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in lines:
        if words[:1] == ["element"] and len(words) == 3:
            if elements and elements[-1][0] == "vertex":
                break
            elements.append((words[1], _whole(path, f"element {words[1]}", words[2]), []))
        elif words[:1] == ["property"] and elements:
            elements[-1][2].append(words[1:])
    return elements


def _numbered(number: int, name: str) -> str:
    """Return a field's name of its own: files repeat names of padding."""
    return name if name in _AXES else f"{number} {name}"


def _whole(path: Path, name: str, text: str, most: int = 2**48) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18 and int(text) <= most):
        raise InputError(f"{path}: expected a whole number as {name}, found {text[:40]!r}")
    return int(text)


def _row(path: Path, fields: list[tuple[str, str, tuple[int]]]) -> np.dtype:
    try:
        return np.dtype([(name, kind) if count == (1,) else (name, kind, count) for name, kind, count in fields])
    except (TypeError, ValueError):
        found = ", ".join(kind for _, kind, _ in fields[:6])
        raise InputError(f"{path}: expected fields of numbers, each of its own name, found {found}") from None


def _axes(path: Path, names: list[str]) -> tuple[str, ...]:
    missing = [axis for axis in _AXES if axis not in names]
    if missing:
        raise InputError(f"{path}: expected the fields x, y and z, found {', '.join(names[:8])}")
    return _AXES


# Data.


def _read_text(path: Path, file: BinaryIO, header: _Header, left: int) -> np.ndarray:
    """Read rows of text. A row takes two bytes per value at least, so memory is bounded by the file's size."""
    counts = [int(np.prod(header.row[name].shape, dtype=int)) for name in header.row.names or ()]
    if header.points * 2 * sum(counts) - 1 > left:
        raise _truncated(path, header, left)
    first = dict(zip(header.row.names or (), np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
    columns = [first[axis] for axis in header.axes]
    rows = np.loadtxt(file, usecols=columns, skiprows=header.skip, max_rows=header.points, ndmin=2, encoding="latin1")
    if len(rows) != header.points:
        raise InputError(f"{path}: truncated, expected {header.points:,} points, found {len(rows):,}")
    return rows


def _read_binary(path: Path, file: BinaryIO, header: _Header, left: int) -> np.ndarray:
    n_bytes = header.points * header.row.itemsize
    if header.skip + n_bytes > left:
        raise _truncated(path, header, left)
    file.seek(header.skip, 1)
    rows = np.frombuffer(file.read(n_bytes), dtype=header.row)
    return np.stack([rows[axis].astype(np.float64).reshape(len(rows), -1)[:, 0] for axis in header.axes], axis=1)


def _read_compressed(path: Path, file: BinaryIO, header: _Header, left: int) -> np.ndarray:
    """Read compressed data once their two sizes, compressed and not, are known to be true."""
    stored, unpacked = np.frombuffer(file.read(8).ljust(8, b"\0"), dtype="<u4").tolist()
    expected = header.points * header.row.itemsize
    if stored + 8 > left:
        raise _truncated(path, header, left)
    if unpacked != expected or unpacked > _MOST_GROWTH * (stored + 8):
        found = f"{stored:,} that become {unpacked:,}"
        raise InputError(f"{path}: expected compressed data that become {expected:,} bytes, found {found}")
    if any(header.row[axis].shape for axis in header.axes):
        raise InputError(f"{path}: expected one number as x, y and z, found several")
    file.seek(header.begin)
    points = _unpacked(header, file.read(stored + 8))
    if len(points) != header.points:
        raise InputError(f"{path}: expected {header.points:,} points in compressed data, found {len(points):,}")
    return points


def _unpacked(header: _Header, data: bytes) -> np.ndarray:
    """Let Open3D decode compressed data behind a header that says what ours does."""
    open3d = import_extra("open3d", "open3d", "reading compressed point clouds")
    fields = [header.row[name] for name in header.row.names or ()]
    lines = {
        "VERSION": ["0.7"],
        "FIELDS": [name if name in _AXES else "_" for name in header.row.names or ()],
        "SIZE": [str(field.base.itemsize) for field in fields],
        "TYPE": [field.base.kind.upper() for field in fields],
        "COUNT": [str(int(np.prod(field.shape, dtype=int))) for field in fields],
        "WIDTH": [str(header.points)], "HEIGHT": ["1"], "POINTS": [str(header.points)],
        "DATA": ["binary_compressed"],
    }  # fmt: skip
    text = "".join(f"{name} {' '.join(words)}\n" for name, words in lines.items())
    with tempfile.TemporaryDirectory(prefix="mmad-bank-points-") as folder:
        copy = Path(folder) / "points.pcd"
        copy.write_bytes(text.encode() + data)
        with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
            cloud = open3d.io.read_point_cloud(str(copy), format="pcd")
    return np.array(cloud.points, dtype=np.float64).reshape(-1, 3)


def _truncated(path: Path, header: _Header, left: int) -> InputError:
    expected = f"{header.points:,} points of {header.row.itemsize} bytes"
    return InputError(f"{path}: truncated, expected {expected}, found {max(left, 0):,} bytes of data")
