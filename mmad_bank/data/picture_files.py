"""Files of plain pictures: those in a folder however nested, those of a list, those that a pattern matches."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmad_bank._internal.extras import import_extra
from mmad_bank.data.names import GOOD, IMAGES, defect_named, describe, in_order, is_visible, split_named
from mmad_bank.errors import InputError

LISTS = (".txt",)
"""Suffixes of lists of pictures, in small letters."""
# Pictures all the same, but of kinds that nobody reads here: worth a word, where a table or a note is not.
_UNREAD = (
    ".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".psd", ".svg", ".exr",
    ".hdr", ".dcm", ".ico", ".tga", ".pdf", ".mp4", ".avi", ".mov", ".mkv",
)  # fmt: skip
# Folders that say that what is in them, or beside them, is not to be learned as normal.
_TRUTHS = ("ground_truth", "groundtruth", "gt", "mask", "masks", "labels", "annotations", "xyz")
_DEFECTS = ("bad", "ng", "nok", "notok", "not_good", "defect", "defects", "defective", "anomaly", "anomalies",
            "anomalous", "abnormal", "broken", "reject", "rejects", "scrap", "faulty")  # fmt: skip
_OWN = "score.json"  # beside the pictures that predict has drawn


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that were asked for.

    Attributes:
        root: Folder that their ids are relative to.
        name: Name for all of them together.
        files: Their files, each once, in order.
        ids: Their ids, with slashes, see :func:`find_pictures`.
    """

    root: Path
    name: str
    files: tuple[Path, ...]
    ids: list[str]


def find_pictures(places: str | Path | Sequence[str | Path]) -> PictureFiles:
    """Find the pictures that are meant by some places.

    Args:
        places: One of these, or several: a picture's file; a folder, of which all pictures are taken, however nested; a
            list, that is a text file (.txt) with one path per line, relative to its folder, where # begins a comment; a
            pattern as of the shell, such as ``line1/**/*.png``.

    Returns:
        The pictures. Ids are paths relative to the one folder, or else to the folder that all pictures share. In a list
        of which some pictures lie below its folder, every line has its id whatever the others are: the path relative to
        that folder, and of a picture that lies elsewhere its last folder and its name behind eight digits which stand
        for the place of that folder, as the line spells it. What a list or a caller names need not be there: who reads
        it says so.

    Raises:
        InputError: A place is not there, a pattern matches nothing, a list cannot be read, or there is no picture.

    Example:
        >>> find_pictures(["line1/*.png", "line2"]).ids  # doctest: +SKIP
        ['line1/000.png', 'line1/001.png', 'line2/monday/000.jpg']
    """
    several = [Path(places)] if isinstance(places, (str, os.PathLike)) else [Path(place) for place in places]
    if not several:
        raise InputError("pictures: expected files, folders, lists or patterns, found none")
    found: dict[str, Path] = {}
    for file in (file for place in several for file in _files_of(place)):
        found.setdefault(os.path.realpath(file), file)  # a picture that links lead to twice is one picture
    files = tuple(found.values())
    if not files:
        raise InputError(f"{several[0]}: expected pictures ({', '.join(IMAGES)}), found {_describe(several[0])}")
    only = several[0] if len(several) == 1 else None
    if only is not None and is_list(only):
        lines = _read_list(only)
        ids = [_id_in_list(lines[file], only.parent) for file in files]
        if any(one.below for one in ids):
            return PictureFiles(only.parent, only.stem, files, [one.name for one in ids])
        root = _common_folder(files)
        return PictureFiles(root, only.stem, files, [_relative(file, root) for file in files])
    is_folder = only is not None and only.is_dir() and all(_is_below(file, only) for file in files)
    root = only if is_folder and only is not None else _common_folder(files)
    name = Path(os.path.abspath(root)).name or "pictures"
    return PictureFiles(root, name, files, [_relative(file, root) for file in files])


def is_list(place: Path) -> bool:
    """Say whether a place is a list of pictures, by its suffix."""
    return place.suffix.lower() in LISTS and not place.is_dir()


def is_pattern(place: Path) -> bool:
    """Say whether a place is a pattern: it has *, ? or [, and there is nothing of that very name."""
    return glob.has_magic(str(place)) and not place.exists()


def holds_pictures(folder: Path) -> bool:
    """Say whether there is a picture in a folder, however nested."""
    return next(_walk(folder, IMAGES), None) is not None


def doubt_of(ids: Iterable[str]) -> str | None:
    """Say why pictures may not all be normal, by the names of their folders; None if nothing speaks against it.

    Args:
        ids: Relative paths of the pictures.

    Example:
        >>> doubt_of(["good/000.png", "good/001.png", "scratch/000.png"])
        'good/ beside scratch/'
        >>> doubt_of(["monday/000.png", "tuesday/000.png"]) is None
        True
    """
    places = {name.rpartition("/")[0] or "." for name in ids}
    parts = sorted({part for place in places for part in place.split("/")} - {"."}, key=in_order)
    splits = [part for part in parts if split_named(part) is not None]
    if len(splits) > 1 or (splits and split_named(splits[0]) != "train"):
        return f"{' and '.join(f'{part}/' for part in splits[:3])} in it, as data sets have splits"
    truths = [part for part in parts if part.casefold() in _TRUTHS]
    if truths:
        return f"{truths[0]}/ in it, as data sets have masks or clouds"
    bad = [part for part in parts if part.casefold().replace(" ", "_") in _DEFECTS]
    if bad:
        return f"{bad[0]}/ in it, as of defective parts"
    for place in sorted(places):
        parent, name = os.path.split(place)
        if place != "." and defect_named(name) == GOOD:
            others = {_below(other, parent) for other in places} - {name, ""}
            others = {other for other in others if defect_named(other) != GOOD}
            if others:
                return f"{name}/ beside {sorted(others, key=in_order)[0]}/"
    return None


def may_be_cloud(path: Path) -> bool:
    """Say whether a TIFF file may hold an organized point cloud: floats in threes; a file that nobody can read may."""
    tifffile = import_extra("tifffile", "tifffile", "reading point clouds")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return page.dtype is None or (page.dtype.kind == "f" and 3 in page.shape)
    except Exception:  # whatever a decoder raises on a damaged file: its reader will say so
        return True


def unread_kinds(folder: Path) -> dict[str, int]:
    """Count the files in a folder that are pictures of a kind that nobody reads here, by suffix."""
    return dict(sorted(Counter(path.suffix.lower() for path in _walk(folder, _UNREAD)).items()))


def _files_of(place: Path) -> list[Path]:
    """List the pictures that one place means."""
    if place.is_dir():
        found = list(_walk(place, IMAGES))
        return sorted(found, key=lambda path: in_order(_relative(path, place)))
    if is_pattern(place):
        matches = sorted(map(Path, glob.glob(str(place), recursive=True)), key=lambda path: in_order(path.as_posix()))
        if not matches:
            raise InputError(f"{place}: expected a pattern of pictures' files, found no file that it matches")
        files = [path for path in matches if path.is_file() and path.suffix.lower() in IMAGES and is_visible(path)]
        return files or [file for path in matches if path.is_dir() for file in _files_of(path)]
    if not place.is_file():
        raise InputError(f"{place}: expected a picture, a folder, a list (.txt) or a pattern, found nothing")
    return list(_read_list(place)) if is_list(place) else [place]


def _read_list(path: Path) -> dict[Path, str]:
    """Read a list's paths, and the line of each.

    Raises:
        InputError: It is no text, or names nothing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("a zero byte")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a list of pictures, one path per line ({error})") from None
    lines = [line.strip() for line in text.splitlines()]
    named = {path.parent / line: line for line in lines if line and not line.startswith("#")}
    if not named:
        raise InputError(f"{path}: expected a list of pictures, one path per line, found none")
    return named


class _Id(NamedTuple):
    """Id of a picture that a list names, and whether it lies below the list's folder."""

    name: str
    below: bool


def _id_in_list(line: str, folder: Path) -> _Id:
    """Return the id of a picture that a list in a folder names by a line, see :func:`find_pictures`."""
    file = folder / line
    if _is_below(file, folder):
        return _Id(_relative(file, folder), True)
    real = Path(os.path.realpath(file.parent), file.name)  # a link may lead to the list's folder
    if _is_below(real, Path(os.path.realpath(folder))):
        return _Id(_relative(real, Path(os.path.realpath(folder))), True)
    place = Path(os.path.normpath(line)).parent
    digits = hashlib.blake2b(os.fsencode(place.parent), digest_size=4).hexdigest()
    return _Id("/".join(part for part in (digits, Path(os.path.abspath(file)).parent.name, file.name) if part), False)


def _walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the visible files of a folder with some suffixes, however nested; links are followed, each folder once."""
    return (
        Path(place, name)
        for place, names in _visit(folder)
        for name in names
        if name[name.rfind(".") :].lower() in suffixes and is_visible(Path(name))
    )


def _visit(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield folders and the names of their files; those with pictures that predict has drawn are left out."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen or _OWN in names:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if is_visible(Path(name)))
        yield place, names


def _common_folder(files: Sequence[Path]) -> Path:
    """Return the folder that all files share."""
    try:
        return Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]))
    except ValueError:  # two drives
        raise InputError(f"{files[0]}: expected pictures of one drive, found {files[-1]} as well") from None


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(root))).as_posix()


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def _below(place: str, parent: str) -> str:
    """Return the folder of ``parent`` in which a place lies; empty if it lies in none."""
    head = f"{parent}/" if parent else ""
    return place[len(head) :].split("/", maxsplit=1)[0] if place.startswith(head) and place != "." else ""


def _describe(place: Path) -> str:
    return describe(place) if place.is_dir() else "none"
