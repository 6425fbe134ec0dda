"""Names that all layouts share, apart from what needs PyTorch: of folders and files, and their order."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from mmad_bank.errors import InputError

GOOD = "good"
"""The kind of defect of normal samples."""
ANOMALOUS = "anomalous"
"""The kind of a defect that nobody has named."""
SPLITS = ("train", "validation", "test")
IMAGES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".pgm", ".ppm", ".pnm",
    ".pbm", ".avif",
)  # fmt: skip
"""Suffixes of colour images and masks, in small letters."""
CLOUDS = (".tiff", ".tif")
"""Suffixes of organized point clouds, in small letters."""
POINTS = (".pcd", ".ply")
"""Suffixes of scattered points, in small letters."""

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing", "test_public"),
}
_GOOD_NAMES = ("good", "ok", "normal")
# What operating systems and archives leave beside the files that were meant.
_LITTER = ("thumbs.db", "desktop.ini", "__macosx")


def split_named(name: str) -> str | None:
    """Return the split that a folder or argument names, in capitals or not; None for other names.

    Example:
        >>> split_named("Val"), split_named("TRAIN"), split_named("images")
        ('validation', 'train', None)
    """
    folded = name.strip().casefold()
    return next((split for split, names in _SPLIT_NAMES.items() if folded in names), None)


def defect_named(name: str) -> str:
    """Return the kind of defect that a folder names: :data:`GOOD` for any name of good samples, else the name.

    Example:
        >>> defect_named("OK"), defect_named("Normal"), defect_named("hole")
        ('good', 'good', 'hole')
    """
    return GOOD if name.strip().casefold() in _GOOD_NAMES else name


def in_order(name: str) -> tuple[tuple[object, ...], str]:
    """Return a key that sorts names as people count, "2" before "10", the same on every file system.

    Example:
        >>> sorted(["10", "9b", "9", "x1", "x"], key=in_order)
        ['9', '9b', '10', 'x', 'x1']
    """
    # Text and numbers alternate, so that numbers meet numbers; the name itself settles "1" and "01".
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), name


def is_visible(path: Path) -> bool:
    """Say whether a file or folder is meant to be read: neither hidden nor litter of a system or an archive."""
    return not path.name.startswith(".") and path.name.casefold() not in _LITTER


def subfolders(path: Path) -> list[Path]:
    """Return a folder's visible subfolders, in order.

    Raises:
        InputError: It is no folder.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise InputError(f"{path}: expected a folder with a data set, found {found}")
    folders = [entry for entry in path.iterdir() if entry.is_dir() and is_visible(entry)]
    return sorted(folders, key=lambda entry: in_order(entry.name))


def describe(path: Path) -> str:
    """Name what a folder holds, for an error's line."""
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"


def split_folder(category: Path, split: str) -> Path | None:
    """Return a category's folder of a split, under any of its names; None if there is none.

    Raises:
        InputError: There are two.
    """
    found = [folder for folder in subfolders(category) if split_named(folder.name) == split]
    if len(found) > 1:
        names = " and ".join(f"{folder.name}/" for folder in found)
        raise InputError(f"{category}: expected one folder of the {split} split, found {names}")
    return found[0] if found else None


def subfolder(folder: Path, name: str) -> Path:
    """Return a folder's subfolder of a name in capitals or not; the name as it stands if there is none."""
    exact = folder / name
    if exact.is_dir():
        return exact
    return next((entry for entry in subfolders(folder) if entry.name.casefold() == name), exact)


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map the names of a folder's files, without suffix, to their paths; empty if there is no such folder.

    Raises:
        InputError: Two files have one name but for the suffix, or but for capitals in it.
    """
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or not is_visible(path):
            continue
        # One and the same name may be spelled in two ways: macOS takes accents apart.
        stem = unicodedata.normalize("NFC", path.stem)
        if stem in files:
            raise InputError(f"{folder}: expected one file per sample, found {files[stem].name} and {path.name}")
        files[stem] = path
    return files


def holds_files(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Say whether a folder holds a file with one of some suffixes, in capitals or not."""
    return any(path.suffix.lower() in suffixes and is_visible(path) and path.is_file() for path in folder.iterdir())


def category_of(sample_id: str) -> str:
    """Return the category that a sample's id names as data sets do; empty if it names none.

    For samples that do not say their category (:attr:`mmad_bank.data.Sample.category`), and models of version 0.1.

    Example:
        >>> category_of("bagel/train/good/000"), category_of("2026/may/line 1/IMG_2041.jpg")
        ('bagel', '')
    """
    parts = sample_id.split("/")
    return parts[0] if len(parts) == 4 and parts[1] in SPLITS else ""
