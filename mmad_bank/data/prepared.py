"""What a prepared data set says of itself: its manifest, and the tag that every prepared sample carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmad_bank._internal.decoding import describe
from mmad_bank._internal.file_names import PREPARED as MANIFEST
from mmad_bank._internal.files import real_path
from mmad_bank.data._images import read_tag
from mmad_bank.data.frame import Frame
from mmad_bank.data.recipes import Preprocessing
from mmad_bank.data.replacing import read_manifest
from mmad_bank.errors import InputError

KEY_PREFIX = "mmad-bank prepared "
FRAME_MARK = " frame "


def preparation_of(path: str | Path) -> Preprocessing | None:
    """Tell whether a data set has been prepared, so that nobody preprocesses it again.

    Args:
        path: The data set's folder, or one category's.

    Returns:
        The settings it was prepared with; None for one as a sensor made it.

    Raises:
        InputError: ``prepared.json`` is there and is something else.
    """
    root = Path(path)
    manifest = manifest_around(root)
    if not manifest:
        return None
    try:
        return Preprocessing(**manifest["settings"])
    except (TypeError, ValueError, OverflowError) as error:  # unknown ones, or values out of range
        expected = f"{root / MANIFEST}: expected settings of this version, found others; prepare anew"
        raise InputError(f"{expected} ({describe(error)})") from None


def is_prepared(file: Path) -> bool:
    """Tell whether a sample's main file has been written by :func:`prepare`, wherever it lies now."""
    return read_tag(file).startswith(KEY_PREFIX)


def frame_of(file: Path, size: tuple[int, int]) -> Frame | None:
    """Read from a prepared sample's main file where its pixels lie in the picture that it was made of.

    Args:
        file: The file: the point cloud's, or the picture's where there is no cloud.
        size: Height and width of the prepared sample.

    Returns:
        None where the file does not say: older versions did not write it, and other programs do not.
    """
    _, mark, text = read_tag(file).partition(FRAME_MARK)
    try:
        frame = Frame.from_text(text) if mark else None
    except InputError:
        return None
    return frame if frame is not None and size == (frame.size, frame.size) else None


def key_of(file: Path) -> str:
    """Read the key that a prepared sample's main file carries; empty if there is none."""
    return read_tag(file).partition(FRAME_MARK)[0]


def manifest_around(path: Path) -> dict[str, Any]:
    """Read the manifest of a data set, given its folder or one category's; empty if there is none."""
    return read_prepared(path) or read_prepared(real_path(path).parent)


def read_prepared(out: Path) -> dict[str, Any]:
    """Read a prepared folder's manifest; empty if there is none."""
    return read_manifest(out / MANIFEST, "settings", "prepared")
