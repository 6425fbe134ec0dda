"""A training in stages, each of which leaves a file; what is done already is not done again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmad_bank._internal.files import replacing, write_text
from mmad_bank._internal.kept import tell
from mmad_bank._internal.manifest import Manifest, read_json
from mmad_bank.errors import FormatError, InputError

_MANIFEST = "stages.json"
_Word = Callable[[Path, str], str]
_WORDS: dict[str, _Word] = {}
_COUNTED: dict[str, str] = {}


class Stages:
    """The folder of one training's intermediate results.

    Results are kept as long as the fingerprint is the same, and removed when it changes. Only files that the training
    itself has written are ever removed.

    Args:
        folder: Made if it is not there.
        fingerprint: All that the results depend on, JSON-able.
        progress: Whether stages show bars on a terminal.

    Raises:
        InputError: The folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = Stages(Path(folder), {"seed": 0}).run("numbers.txt", lambda path: path.write_text("1 2 3"))
        ...     again = Stages(Path(folder), {"seed": 0}).run("numbers.txt", lambda path: path.write_text("4"))
        ...     again.read_text()
        '1 2 3'
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], *, progress: bool = False) -> None:
        self.folder, self.progress = folder, progress
        manifest = folder / _MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = _read(manifest)
            if kept.get("fingerprint") != fingerprint:
                for name in kept.get("files", []):
                    (folder / Path(name).name).unlink(missing_ok=True)
                kept = {"fingerprint": fingerprint, "files": []}
            self._content = kept
            self._write()
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
        tell(folder, self.describe)

    def describe(self) -> str:
        """Return words for what is there already; empty if nothing is."""
        return describe_files(files_of(self.folder))

    def run(self, name: str, make: Callable[[Path], Any]) -> Path:
        """Return the file ``name``; if it is not there, let ``make`` write it under another name first."""
        path = self.folder / name
        if not path.exists():
            self._promise(name)
            with replacing(path) as partial:
                make(partial)
        return path

    def state(self, name: str) -> Path:
        """Return the path of a file that a stage keeps and replaces by itself, such as a training's state."""
        self._promise(name)
        return self.folder / name

    def _promise(self, name: str) -> None:
        if name not in self._content["files"]:
            self._content["files"].append(name)
            self._write()

    def _write(self) -> None:
        write_text(self.folder / _MANIFEST, json.dumps(self._content, indent=2) + "\n")


def wording(pattern: str) -> Callable[[_Word], _Word]:
    """Register what is to be said of a stage's files whose names match a pattern, with one group.

    The function gets the path and the group, and returns words for people. Whoever makes the files registers it.

    Example:
        >>> @wording(r"notes-(.+)\\.txt")
        ... def _notes(path: Path, name: str) -> str:
        ...     return f"notes on {name}"
        >>> describe_files([Path("notes-rgb.txt"), Path("other.txt")])
        'notes on rgb'
    """

    def register(word: _Word) -> _Word:
        _WORDS[pattern] = word
        return word

    return register


def counting(pattern: str, what: str) -> None:
    """Register what files are called of which only the number is said, such as ``measured setting``."""
    _COUNTED[pattern] = what


def describe_files(paths: Sequence[Path]) -> str:
    """Return words for what stages have left, by the names of their files; files that say nothing are left out."""
    words = []
    for path in paths:
        for pattern, word in _WORDS.items():
            found = re.fullmatch(pattern, path.name)
            if found:
                with suppress(Exception):  # a file that cannot be read has nothing to say; whoever needs it says so
                    words.append(word(path, found[1]))
    for pattern, what in _COUNTED.items():
        number = sum(bool(re.fullmatch(pattern, path.name)) for path in paths)
        words += [counted(number, what)] if number else []
    return ", ".join(words)


def counted(number: int, what: str) -> str:
    """Return a number of things in words.

    Example:
        >>> counted(1, "selected row"), counted(2000, "selected row")
        ('1 selected row', '2,000 selected rows')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _read(manifest: Path) -> dict[str, Any]:
    """Return what the manifest says; nothing if there is none, or what is there is no such thing."""
    try:
        found = Manifest(str(manifest), read_json(manifest))
        return {"fingerprint": found.table("fingerprint").content, "files": found.texts("files")}
    except (InputError, FormatError):
        return {}


def fingerprint_of(folder: Path) -> dict[str, Any]:
    """Return what the results in a folder depend on; nothing if there are none."""
    return dict(_read(folder / _MANIFEST).get("fingerprint", {}))


def files_of(folder: Path) -> list[Path]:
    """Return the results in a folder."""
    paths = [folder / Path(name).name for name in _read(folder / _MANIFEST).get("files", [])]
    return [path for path in paths if path.is_file()]


def remove_unused(folder: Path) -> None:
    """Remove a folder in which stages were to leave results, but nothing else than their list is there."""
    with suppress(OSError):
        if os.listdir(folder) == [_MANIFEST]:
            remove_stages(folder)


def remove_stages(folder: Path) -> None:
    """Remove what a training left in a folder, and the folder if nothing else is in it."""
    for name in _read(folder / _MANIFEST).get("files", []):
        (folder / Path(name).name).unlink(missing_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)
    with suppress(OSError):  # others' files are in it; without its list it may be what a killed process has emptied
        folder.rmdir()
