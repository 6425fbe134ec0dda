"""What is asked before a prepared or synthetic data set is replaced, and how a replacement takes its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmad_bank._internal.files import write_text
from mmad_bank._internal.folders import replacing_folder
from mmad_bank._internal.manifest import read_json
from mmad_bank._internal.partial import is_partial
from mmad_bank.errors import FormatError, InputError

SET_ASIDE = ".set_aside"
"""Folder in a prepared one with what was prepared of samples that the data set does not have any more."""
_KINDS = ("rgb", "xyz", "gt")
_DEPTH = 5  # category/split/defect/kind/file


def read_manifest(path: Path, key: str, kind: str) -> dict[str, Any]:
    """Read the manifest of a data set's folder; empty if there is none.

    Args:
        path: The file.
        key: Key that it must have.
        kind: Kind of data set, for the message.

    Raises:
        InputError: The file is something else.
    """
    if not path.is_file():
        return {}
    try:
        manifest = read_json(path)
    except FormatError:
        manifest = None
    if not isinstance(manifest, dict) or key not in manifest:
        raise InputError(f"{path}: expected the manifest of a {kind} data set, found something else")
    return manifest


def is_empty(folder: Path, manifest: str) -> bool:
    """Tell whether a folder holds nothing, or only what a killed writer of its manifest has left."""
    return all(is_partial(path, folder / manifest) for path in folder.iterdir())


def foreign_file(folder: Path, manifest: str) -> Path | None:
    """Return a file that no writer of data sets has put into a folder, which must not go with the rest."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_dir() or parts == (manifest,) or is_partial(path, folder / manifest):
            continue
        parts = parts[1:] if parts[0] == SET_ASIDE else parts
        if len(parts) != _DEPTH or parts[-2] not in _KINDS or path.suffix not in (".png", ".tiff"):
            return path
    return None


def check_replaceable(folder: Path, manifest: str) -> None:
    """Refuse to replace a data set's folder with which somebody else's file would go.

    Raises:
        InputError: There is such a file.
    """
    foreign = foreign_file(folder, manifest)
    if foreign is not None:
        raise InputError(f"{folder}: cannot be replaced, as it holds {foreign}, which is no part of the data set")


def word_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in which settings two preparations differ.

    Example:
        >>> word_differences({"size": 224, "pad": "zero"}, {"size": 64, "pad": "zero"})
        'size 224, not 64'
    """
    names = sorted({*earlier, *now})
    return ", ".join(
        f"{name} {earlier.get(name)}, not {now.get(name)}" for name in names if earlier.get(name) != now.get(name)
    )


def put_in_place(work: Path, target: Path, manifest: str, text: str) -> None:
    """Give a finished folder the place of another, which goes once the new one is there.

    Args:
        work: The finished folder, beside the target.
        target: Folder that is replaced.
        manifest: The file of ``work`` that stays there to the end, so that until then ``work`` says what it is.
        text: Text of the file in the new place.
    """
    with replacing_folder(target) as fresh:
        for path in work.iterdir():
            if path.name != manifest:
                path.rename(fresh / path.name)
        write_text(fresh / manifest, text)
    (work / manifest).unlink()
    work.rmdir()


def set_aside(out: Path, files: Iterable[Path], suffixes: Sequence[tuple[str, str]]) -> list[str]:
    """Move samples out of a prepared data set into its folder :data:`SET_ASIDE`; nothing is deleted.

    Args:
        out: The prepared data set.
        files: A file of each sample.
        suffixes: Folder and suffix of each of a sample's files.

    Returns:
        The samples' ids.
    """
    moved = []
    for file in files:
        folder = file.parent.parent
        for kind, suffix in suffixes:
            path = folder / kind / f"{file.stem}{suffix}"
            if path.exists():
                target = out / SET_ASIDE / path.relative_to(out)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        moved.append("/".join((*folder.relative_to(out).parts, file.stem)))
    return sorted(moved)
