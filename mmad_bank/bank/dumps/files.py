"""Files of features by their suffixes."""

from __future__ import annotations

import os
from pathlib import Path

from mmad_bank._internal.decoding import decoding
from mmad_bank.bank.dumps.numpy_files import look_into_npy, look_into_npz
from mmad_bank.bank.dumps.stored import Contents
from mmad_bank.bank.dumps.tensor_files import look_into_safetensors, look_into_torch
from mmad_bank.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")


def read_contents(path: Path, suffix: str | None = None) -> Contents:
    """Look into a file; ``suffix`` tells its kind where its path does not.

    Raises:
        InputError: It is damaged, of another format, or asks for code to be run.
    """
    suffix = path.suffix.lower() if suffix is None else suffix
    reader = {".npy": look_into_npy, ".npz": look_into_npz, ".safetensors": look_into_safetensors}
    with decoding(path, f"damaged or not a {suffix} file"):
        return reader.get(suffix, look_into_torch)(path)


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
