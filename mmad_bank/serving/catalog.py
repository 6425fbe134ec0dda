"""The models of a folder: names, and where they lie.

A name is taken from a listing of the folder, never put together to a path, so that no name leads out of it. What is a
link is followed as long as it ends within the folder.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmad_bank._internal.file_names import MODEL
from mmad_bank._internal.files import state_of
from mmad_bank.errors import InputError

SUFFIXES = (".safetensors", ".bank")
"""Suffixes of bank files, which their names go without."""
Signature = tuple[tuple[int, int, int, int], ...]
"""What tells a model on disk from another: device, inode, size and time of change of its files."""


@dataclass(frozen=True)
class Place:
    """Where a model lies.

    Attributes:
        name: Its name.
        path: Its folder or bank file.
        is_bank: Whether it is a bank file.
    """

    name: str
    path: Path
    is_bank: bool

    def signature(self) -> Signature | None:
        """Return what tells its present state from others; None if it is gone."""
        try:
            return tuple(state_of(path) for path in ((self.path,) if self.is_bank else (self.path, self.path / MODEL)))
        except OSError:
            return None

    def bytes_on_disk(self) -> int:
        """Return the size of its files."""
        files = [self.path] if self.is_bank else [one for one in self.path.rglob("*") if one.is_file()]
        return sum(one.stat().st_size for one in files if one.exists())


class Catalog:
    """The models of a folder, or the one that a path is.

    Args:
        root: Folder of models; or a saved model, or a bank file.

    Raises:
        InputError: There is no such file or folder.

    Example:
        >>> import tempfile, torch
        >>> from mmad_bank import MemoryBank
        >>> folder = tempfile.mkdtemp()
        >>> MemoryBank(torch.rand(5, 3)).save(f"{folder}/tile.bank")
        >>> Catalog(folder).names()
        ['tile']
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        if not self.root.exists():
            raise InputError(f"{root}: expected a folder of models, found nothing")
        self._single = self.root.is_file() or (self.root / MODEL).is_file()
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        self._listed: int | None = None

    def names(self) -> list[str]:
        """Return the names of all models, sorted."""
        return sorted(self._list(anew=True))

    def find(self, name: str) -> Place | None:
        """Return where a model lies; None if there is none of that name."""
        found = self._list(anew=False).get(name)
        return found if found is None or found.signature() is not None else self._list(anew=True).get(name)

    def is_bank(self, name: str) -> bool:
        """Say whether a model is a bank file."""
        found = self._list(anew=False).get(name)
        return found is not None and found.is_bank

    def _list(self, *, anew: bool) -> dict[str, Place]:
        """Return all models; the folder is read again if something came or went."""
        with self._lock:
            try:
                changed = self.root.stat().st_mtime_ns
            except OSError:
                return {}
            if anew or changed != self._listed:
                self._places, self._listed = dict(self._read()), changed
            return self._places

    def _read(self) -> Iterator[tuple[str, Place]]:
        if self._single:
            is_bank = self.root.is_file()
            name = _short(self.root.name) if is_bank else self.root.name
            yield name, Place(name, self.root, is_bank)
            return
        found = [
            place for entry in sorted(os.scandir(self.root), key=lambda one: one.name) if (place := self._place(entry))
        ]
        short = [place.name for place in found]
        for place in found:  # two files that differ by their suffix only keep it
            name = place.name if short.count(place.name) == 1 else place.path.name
            yield name, Place(name, place.path, place.is_bank)

    def _place(self, entry: os.DirEntry[str]) -> Place | None:
        """Return the model that an entry of the folder is, if it is one."""
        name = entry.name
        if name.startswith(".") or not name.isprintable():
            return None
        try:
            inside = not entry.is_symlink() or Path(os.path.realpath(entry.path)).is_relative_to(
                os.path.realpath(self.root)
            )
            if not inside:
                return None
            if entry.is_dir():
                return Place(name, Path(entry.path), False) if os.path.isfile(os.path.join(entry.path, MODEL)) else None
            is_bank = entry.is_file() and name.endswith(SUFFIXES) and _short(name) != ""
            return Place(_short(name), Path(entry.path), True) if is_bank else None
        except OSError:
            return None


def _short(name: str) -> str:
    """Return a bank file's name without its suffix."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
