"""Files of features by their suffixes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmad_bank._internal.checks import ArrayLike
from mmad_bank._internal.decoding import decoding
from mmad_bank.bank.dumps.numpy_files import look_into_npy, look_into_npz
from mmad_bank.bank.dumps.stored import Contents, Stored
from mmad_bank.bank.dumps.tensor_files import look_into_safetensors, look_into_torch
from mmad_bank.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")


class _Version(NamedTuple):
    """What tells a file from one that has taken its place, the same on all machines that share the file."""

    size: int
    changed: int
    """Nanoseconds since 1970."""

    @classmethod
    def of(cls, path: Path) -> _Version:
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns)

    def __str__(self) -> str:
        seconds, rest = divmod(self.changed, 10**9)
        try:
            day = f"{datetime.fromtimestamp(seconds)}.{rest:09d}"
        except (OverflowError, ValueError, OSError):  # beyond the years that dates have
            day = f"{seconds}.{rest:09d} s after 1970"
        return f"{self.size} bytes of {day}"

    def check(self, path: Path) -> None:
        """Refuse a file that is another by now."""
        now = self.of(path)
        if now != self:
            raise InputError(f"{path}: expected the file as it was when it was opened ({self}), found another ({now})")


def read_contents(path: Path, suffix: str | None = None) -> Contents:
    """Look into a file; ``suffix`` tells its kind where its path does not.

    Its values are read later, maybe by other processes; whoever finds that the file was changed meanwhile says so.

    Raises:
        InputError: It is damaged, of another format, or asks for code to be run.
    """
    suffix = path.suffix.lower() if suffix is None else suffix
    reader = {".npy": look_into_npy, ".npz": look_into_npz, ".safetensors": look_into_safetensors}
    with decoding(path, f"damaged or not a {suffix} file"):
        version = _Version.of(path)
        contents = reader.get(suffix, look_into_torch)(path)
    return replace(contents, open=partial(_open, path, version, contents.open))


def _open(path: Path, version: _Version, open_array: Callable[[str], Stored], key: str) -> Stored:
    array = open_array(key)
    version.check(path)
    return array if array.in_memory else replace(array, values=partial(_values, path, version, array.values))


def _values(
    path: Path, version: _Version, values: Callable[[int, int], ArrayLike], first: int, count: int
) -> ArrayLike:
    version.check(path)
    found = values(first, count)
    version.check(path)
    return found


def is_dump(name: str) -> bool:
    """Tell whether a file may hold features, by the suffix of its name."""
    return Path(name).suffix.lower() in SUFFIXES


def dumps_in(folder: Path) -> list[Path]:
    """Return the feature files in a folder and the folders in it, in the order of their paths; hidden ones not."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".") and is_dump(name)]
    return sorted(files)


def files_of(path: Path) -> list[Path]:
    """Return a file of features, or those in a folder.

    Raises:
        InputError: There is none.
    """
    if path.is_dir():
        files = dumps_in(path)
        if not files:
            raise InputError(f"{path}: expected a folder with {', '.join(SUFFIXES)} files, found none")
        return files
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    if not is_dump(path.name):
        raise InputError(f"{path}: expected a {', '.join(SUFFIXES)} file, found {path.suffix!r}")
    return [path]
